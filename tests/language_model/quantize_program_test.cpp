// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The quantising program through its command line, where it is built.
#if defined(MOE_QUANTIZE)
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <sys/wait.h>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/gguf.hpp>
#include <moe/io/packed.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/quantized_loader.hpp>

#include "language_model/bundled_model.hpp"
#include "support/gguf_model.hpp"
#include "support/loading.hpp"
#include "support/safetensors_writer.hpp"

namespace language_model {
namespace quantize_program_test {

using moe::Index;
using moe::Matrix;

constexpr Index d_model = 64;

Matrix<float> random(Index rows, Index cols, std::uint64_t seed) {
  Matrix<float> m(rows, cols);
  moe::detail::fill_uniform(m.data(), m.size(), cols, seed);
  return m;
}

/// Tokens some of whose values are much larger than the others, from `first` on.
Matrix<float> activations(Index first, std::uint64_t seed) {
  Matrix<float> x = random(96, d_model, seed);
  x.middleCols(first, 4) *= 30;
  return x;
}

class QuantizeProgram : public testing::Test {
 protected:
  void SetUp() override { write_model(2, 1); }

  /// Two layers of Mixtral, each token's experts `top_k` of `experts`.
  void write_model(int experts, int top_k) {
    test_support::SafetensorsWriter file;
    std::uint64_t seed = 0;
    for (const char* layer : {"0", "1"}) {
      const std::string prefix = std::string("model.layers.") + layer + ".block_sparse_moe.";
      file.add(prefix + "gate.weight", random(experts, d_model, ++seed));
      for (int e = 0; e < experts; ++e)
        for (const char* part : {"w1", "w2", "w3"})
          file.add(prefix + "experts." + std::to_string(e) + "." + part + ".weight",
                   random(d_model, d_model, ++seed));
    }
    file.metadata("config", R"({"model_type": "mixtral", "hidden_size": 64,
      "intermediate_size": 64, "num_local_experts": )" +
                                std::to_string(experts) +
                                ", \"num_experts_per_tok\": " + std::to_string(top_k) + "}");
    folder_.write("model.safetensors", file.bytes());
  }

  /// Runs the program on a model, and gives its exit status.
  int run(const std::string& arguments, const std::string& model = "model.safetensors",
          const std::string& out = "packed") {
    const std::string command = std::string(MOE_QUANTIZE) + " --model " + folder_.file(model) +
                                " --out " + folder_.file(out) + " " + arguments + " >" +
                                folder_.file("out") + " 2>" + folder_.file("error");
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string out() const { return read_file(folder_.file("out")); }
  std::string error() const { return read_file(folder_.file("error")); }

  /// The error of a layer's outputs, all experts together.
  double output_error(Index layer) const { return output_error("    " + std::to_string(layer)); }
  double output_error(const std::string& layer) const { return error_of(layer, 1); }
  /// That of what the layer's tokens get from the experts that they choose.
  double block_error(Index layer) const { return error_of("    " + std::to_string(layer), 2); }

  /// A column of a layer's row.
  double error_of(const std::string& layer, std::size_t column) const {
    const std::string label = "\n" + layer + "    all";
    const std::string text = out();
    const std::size_t at = text.find(label);
    EXPECT_NE(at, std::string::npos) << text;
    if (at == std::string::npos) return 0;
    return std::strtod(text.c_str() + at + label.size() + 13 * column, nullptr);
  }

  test_support::TemporaryFolder folder_;
};

TEST_F(QuantizeProgram, TellsWhatBlocksLose) {
  write_model(3, 2);  // Two experts a token, so that weights matter.
  const Matrix<float> x = activations(0, 50);
  test_support::SafetensorsWriter tokens;
  tokens.add("x", x);
  folder_.write("tokens.safetensors", tokens.bytes());
  ASSERT_EQ(run(" --activations " + folder_.file("tokens.safetensors")), 0) << error();
  const auto checkpoint = moe::io::Checkpoint::open(folder_.file("model.safetensors"));
  const moe::io::PackedFile packed(folder_.file("packed"));
  for (const Index layer : {0, 1}) {
    auto exact = checkpoint.layer<float>(layer);
    auto rounded = moe::io::packed_layer(checkpoint, layer, packed);
    Matrix<float> y(x.rows(), d_model);
    Matrix<float> z(x.rows(), d_model);
    exact.forward(x, y);
    rounded.forward(x, z);
    const auto error = static_cast<double>((z - y).norm() / y.norm());
    EXPECT_GT(error, 0.01);
    EXPECT_NEAR(block_error(layer), error, 1e-5) << layer;  // It has five digits.
  }
}

TEST_F(QuantizeProgram, CalibratesEachLayerWithActivationsOfItsOwn) {
  test_support::SafetensorsWriter tokens;
  tokens.add("layers.0", activations(0, 50));
  tokens.add("x", activations(32, 51));  // for all other layers
  folder_.write("tokens.safetensors", tokens.bytes());
  const std::string with = " --activations " + folder_.file("tokens.safetensors");
  ASSERT_EQ(run(with), 0) << error();
  const double plain[] = {output_error(0), output_error(1)};
  ASSERT_EQ(run(with + " --calibrate"), 0) << error();
  for (const Index layer : {0, 1}) {
    EXPECT_GT(plain[layer], 0.01);
    EXPECT_LT(output_error(layer), 0.9 * plain[layer]) << layer;
  }
  moe::io::PackedFile(folder_.file("packed")).verify();
  // What is calibrated for one layer's tokens is of no use for another's.
  test_support::SafetensorsWriter others;
  others.add("layers.0", activations(32, 51));
  others.add("layers.1", activations(0, 50));
  folder_.write("others.safetensors", others.bytes());
  ASSERT_EQ(run(" --activations " + folder_.file("others.safetensors") + " --calibrate"), 0);
  const double calibrated = output_error(0);
  ASSERT_EQ(run(" --activations " + folder_.file("others.safetensors")), 0);
  EXPECT_LT(calibrated, 0.9 * output_error(0));
}

TEST_F(QuantizeProgram, TakesGgufFiles) {
  const test_support::GgufModel model("llama", moe::io::GgufType::q4_0);
  folder_.write("model.gguf", model.file.bytes());
  ASSERT_EQ(run("--weights stored --tokens 8", "model.gguf"), 0) << error();
  EXPECT_LT(output_error(1), 0.02) << "activations alone are rounded";
  const moe::io::PackedFile packed(folder_.file("packed"));
  packed.verify();
  const auto bank = packed.bank<moe::SwiGlu>("layers.1");
  EXPECT_EQ(bank.format(0).up, moe::format_of("int4-g32"));
  for (Index e = 0; e < bank.num_experts(); ++e)
    EXPECT_EQ(bank.expert(e).down, model.routed[static_cast<std::size_t>(e)].down);
  ASSERT_EQ(run("--weights nl4-g32 --tokens 8", "model.gguf"), 0) << error();
  EXPECT_GT(output_error(1), 0.02);
}

TEST_F(QuantizeProgram, PacksBothStacksOfAnEncoderAndADecoder) {
  test_support::SafetensorsWriter file;
  std::uint64_t seed = 0;
  for (const char* block : {"encoder.block.1.layer.1.mlp.", "decoder.block.1.layer.2.mlp."}) {
    const std::string prefix = block;
    file.add(prefix + "router.classifier.weight", random(2, d_model, ++seed));
    for (const char* e : {"0", "1"})
      for (const char* part : {"wi", "wo"})
        file.add(prefix + "experts.expert_" + e + "." + part + ".weight",
                 random(d_model, d_model, ++seed));
  }
  file.metadata("config", R"({"model_type": "switch_transformers", "d_model": 64, "d_ff": 64,
      "num_experts": 2, "expert_capacity": 64})");
  folder_.write("switch.safetensors", file.bytes());
  ASSERT_EQ(run("--weights int8-g32", "switch.safetensors"), 0) << error();
  EXPECT_GT(output_error("    1"), 0);
  EXPECT_GT(output_error("   d1"), 0);
  const auto checkpoint = moe::io::Checkpoint::open(folder_.file("switch.safetensors"));
  const moe::io::PackedFile packed(folder_.file("packed"));
  const auto format = moe::format_of("int8-g32");
  for (const auto stack : {moe::io::Stack::encoder, moe::io::Stack::decoder})
    test_support::expect_same(
        moe::io::quantized_layer(checkpoint, 1, {.format = moe::ExpertFormat{format, format}},
                                 stack),
        moe::io::packed_layer(checkpoint, 1, packed, moe::ProductKind::integer, stack));
}

TEST_F(QuantizeProgram, OverwritesNoInput) {
  test_support::SafetensorsWriter tokens;
  tokens.add("x", random(8, d_model, 3));
  folder_.write("tokens.safetensors", tokens.bytes());
  const test_support::GgufModel gguf("llama", moe::io::GgufType::q4_0);
  folder_.write("model.gguf", gguf.file.bytes());
  const auto stays = [&](const std::string& model, const std::string& input,
                         const std::string& arguments) {
    const std::string before = read_file(folder_.file(input));
    EXPECT_EQ(run(arguments, model, input), 1) << input;
    EXPECT_NE(error().find("is an input, so it is not overwritten"), std::string::npos) << error();
    EXPECT_EQ(read_file(folder_.file(input)), before) << input;
  };
  stays("model.safetensors", "model.safetensors", "");
  stays("model.safetensors", "tokens.safetensors",
        "--activations " + folder_.file("tokens.safetensors"));
  stays("model.gguf", "model.gguf", "");
  // The name that the file has while it is written.
  folder_.write("new.part", read_file(folder_.file("model.safetensors")));
  const std::string before = read_file(folder_.file("new.part"));
  EXPECT_EQ(run("", "new.part", "new"), 1);
  EXPECT_EQ(read_file(folder_.file("new.part")), before);
  std::filesystem::create_symlink(folder_.file("model.safetensors"), folder_.file("link"));
  stays("model.safetensors", "link", "");
}

TEST_F(QuantizeProgram, SaysWhatIsWrong) {
  EXPECT_EQ(run("--weights stored"), 1);
  EXPECT_NE(error().find("stored as floats"), std::string::npos) << error();
  EXPECT_EQ(run("--weights stored --no-search"), 1);
  EXPECT_NE(error().find("nothing to search"), std::string::npos) << error();
  EXPECT_NE(run("--calibrate"), 0) << "without activations";
  test_support::SafetensorsWriter narrow;
  narrow.add("x", random(8, d_model - 1, 3));
  folder_.write("tokens.safetensors", narrow.bytes());
  const std::string with = " --activations " + folder_.file("tokens.safetensors");
  EXPECT_EQ(run(with), 1);
  EXPECT_NE(error().find("tokens.safetensors"), std::string::npos) << error();
  EXPECT_NE(error().find("expected shape"), std::string::npos) << error();
  EXPECT_EQ(run("--weights int3"), 1);
  EXPECT_NE(error().find("int3"), std::string::npos) << error();
}

}  // namespace quantize_program_test
}  // namespace language_model
#endif
