// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The bundled model with its experts in few bits.
#include "language_model/quantized.hpp"

#include <stdexcept>

#include <gtest/gtest.h>

#include "language_model/bundled_model.hpp"
#include "language_model/evaluate.hpp"

namespace language_model {
namespace quantized_test {

double nats_per_byte(const QuantizedOptions& options, const std::string& text) {
  const Model<float> model(moe::io::Checkpoint::open(model_path), quantized_mixtures(options));
  return evaluate(model, text, static_cast<Index>(window_bytes)).nats_per_byte;
}

TEST(QuantizedModel, ManyBitsChangeLittle) {
  const std::string text = first_windows(4);
  const double whole =
      evaluate(bundled_model<float>(), text, static_cast<Index>(window_bytes)).nats_per_byte;
  EXPECT_NEAR(nats_per_byte({.weights = "bf16", .weight_only = true}, text), whole, 2e-3);
  EXPECT_NEAR(nats_per_byte({.weights = "int8-g32", .weight_only = true}, text), whole, 2e-3);
  EXPECT_NE(nats_per_byte({.weights = "int4-g128"}, text), whole);
}

#if defined(__OPTIMIZE__)  // It takes minutes without.
TEST(QuantizedModel, LosesAThousandthOfANatInEightBitsAndAHundredthInFour) {
  const double whole = reference()["nats_per_byte"].get<double>();
  EXPECT_LT(nats_per_byte({.weights = "int8"}, bundled_text()), whole + 0.001);
  EXPECT_LT(nats_per_byte({.weights = "int4-g32"}, bundled_text()), whole + 0.01);
}
#endif

TEST(QuantizedModel, RefusesAFormatThatThereIsNot) {
  EXPECT_THROW(quantized_mixtures({.weights = "int3"}), std::invalid_argument);
  EXPECT_THROW(quantized_mixtures({.weights = "int8,"}), std::invalid_argument);
  EXPECT_THROW(quantized_mixtures({.weights = ",int8"}), std::invalid_argument);
}

}  // namespace quantized_test
}  // namespace language_model
