// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The bundled model with its experts in few bits.
#include "language_model/quantized.hpp"

#include <map>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/quantized_loader.hpp>

#include "language_model/bundled_model.hpp"
#include "language_model/evaluate.hpp"
#include "language_model/tiny_checkpoint.hpp"

namespace language_model {
namespace quantized_test {

double nats_per_byte(const QuantizedOptions& options, const std::string& text) {
  return evaluate(quantized_model(moe::io::Checkpoint::open(model_path), options), text,
                  static_cast<Index>(window_bytes))
      .nats_per_byte;
}

TEST(QuantizedModel, ManyBitsChangeLittle) {
  const std::string text = first_windows(4);
  const double whole =
      evaluate(bundled_model<float>(), text, static_cast<Index>(window_bytes)).nats_per_byte;
  EXPECT_NEAR(nats_per_byte({.weights = "bf16", .weight_only = true}, text), whole, 2e-3);
  EXPECT_NEAR(nats_per_byte({.weights = "int8-g32", .weight_only = true}, text), whole, 2e-3);
  EXPECT_NE(nats_per_byte({.weights = "int4-g128"}, text), whole);
}

TEST(QuantizedModel, OfAPackedFileHasTheSameBits) {
  const TemporaryFolder folder;
  const std::string path = folder.file("packed");
  const auto checkpoint = moe::io::Checkpoint::open(model_path);
  const moe::WeightFormat format = moe::format_of("int4-g32");
  const moe::io::QuantizedLoading loading{.format = moe::ExpertFormat{format, format},
                                          .search = moe::ScaleSearch::nearest};
  std::map<std::string, moe::QuantizedExperts<moe::SwiGlu>> banks;
  std::map<std::string, moe::io::PackedBank> descriptions;
  for (const Index layer : checkpoint.moe_layers()) {
    const auto block = moe::io::quantized_layer(checkpoint, layer, loading);
    const auto* const bank = block.experts().target<moe::QuantizedExperts<moe::SwiGlu>>();
    ASSERT_NE(bank, nullptr);
    const std::string name = moe::io::packed_bank_name(layer);
    banks.emplace(name, *bank);
    descriptions.emplace(name, moe::io::describe(*bank));
  }
  moe::io::PackedWriter writer(path, descriptions);
  for (const auto& [name, bank] : banks) writer.write_bank(name, bank);
  writer.finish();
  const std::string text = first_windows(4);
  for (const bool weight_only : {false, true}) {
    const double packed = nats_per_byte({.packed = path, .weight_only = weight_only}, text);
    EXPECT_EQ(packed,
              nats_per_byte({.weights = "int4-g32", .weight_only = weight_only, .no_search = true},
                            text));
    EXPECT_NE(
        packed,
        evaluate(bundled_model<float>(), text, static_cast<Index>(window_bytes)).nats_per_byte);
  }
}

#if defined(__OPTIMIZE__)  // It takes minutes without.
TEST(QuantizedModel, LosesAThousandthOfANatInEightBitsAndAHundredthInFour) {
  const double whole = reference()["nats_per_byte"].get<double>();
  EXPECT_LT(nats_per_byte({.weights = "int8"}, bundled_text()), whole + 0.001);
  const double four = nats_per_byte({.weights = "int4-g32"}, bundled_text());
  EXPECT_LT(four, whole + 0.01);
  const double calibrated =
      nats_per_byte({.weights = "int4-g32", .calibrate = training_path}, bundled_text());
  EXPECT_LT(calibrated, whole + 0.01);
  EXPECT_LT(calibrated, four);
}
#endif

TEST(QuantizedModel, RefusesAFormatThatThereIsNot) {
  const auto checkpoint = moe::io::Checkpoint::open(model_path);
  for (const char* const weights : {"int3", "int8,", ",int8"})
    EXPECT_THROW(quantized_model(checkpoint, {.weights = weights}), std::invalid_argument);
  const TemporaryFolder folder;
  folder.write("text", "");
  EXPECT_THROW(quantized_model(checkpoint, {.weights = "int8", .calibrate = folder.file("text")}),
               std::invalid_argument);
  EXPECT_THROW(quantized_model(checkpoint, {.packed = model_path}), moe::FormatError);
}

}  // namespace quantized_test
}  // namespace language_model
