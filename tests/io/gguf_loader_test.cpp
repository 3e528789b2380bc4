// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// GGUF files made here, against the weights that their blocks say.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/gguf_loader.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/moe.hpp>

#include "support/gguf_model.hpp"
#include "support/gguf_writer.hpp"
#include "support/layers.hpp"
#include "support/loading.hpp"
#include "support/temporary_file.hpp"

namespace gguf_loader_test {

using moe::Index;
using moe::Matrix;
using moe::io::QuantizedLoading;
using test_support::calibrated_with;
using test_support::expect_calibrated;
using test_support::expect_same;
using test_support::expect_weights;
using test_support::GgufModel;
using test_support::GgufWriter;
using test_support::quantized;
using test_support::random_matrix;
using test_support::refusal;

class GgufLoading : public test_support::TemporaryFile {};

constexpr Index experts = GgufModel::experts;

TEST_F(GgufLoading, OfMixtralAndQwen3) {
  for (const char* arch : {"llama", "qwen3moe"}) {
    for (const auto type : {moe::io::GgufType::q8_0, moe::io::GgufType::q4_0}) {
      const GgufModel model(arch, type, type == moe::io::GgufType::q4_0);
      write(model.file.bytes());
      const moe::io::GgufFile file(path_);
      const moe::io::LayerConfig config = moe::io::layer_config(file);
      EXPECT_EQ(config.d_ff, GgufModel::hidden);
      EXPECT_EQ(config.top_k, 2);
      EXPECT_EQ(config.family, arch == std::string("llama") ? moe::io::Family::mixtral
                                                            : moe::io::Family::qwen3_moe);
      auto layer = moe::io::load_gguf_block(file, config, 1);
      expect_weights(quantized(layer), model.routed);
      const Matrix<float> x = random_matrix<float>(3, GgufModel::width, 3);
      Matrix<float> y(3, GgufModel::width);
      layer.forward(x, y);
      EXPECT_TRUE(y.allFinite());
    }
  }
}

/// The same block in safetensors, in floats, by its family's names.
moe::io::SafetensorsWriter in_safetensors(const GgufModel& model, const std::string& block,
                                          const std::vector<std::string>& parts,
                                          const std::string& config) {
  moe::io::SafetensorsWriter file;
  const std::string prefix = "model.layers.1." + block + ".";
  file.add(prefix + "gate.weight", random_matrix<float>(experts, GgufModel::width, 1));
  const auto add = [&](const std::string& name, const moe::ExpertMatrices<float>& expert) {
    file.add(name + parts[0] + ".weight", expert.gate);
    file.add(name + parts[1] + ".weight", expert.up);
    file.add(name + parts[2] + ".weight", expert.down);
  };
  for (Index e = 0; e < experts; ++e)
    add(prefix + "experts." + std::to_string(e) + ".", model.routed[static_cast<std::size_t>(e)]);
  if (model.shared.gate.size() > 0) {
    add(prefix + "shared_experts.", model.shared);
    file.add_vector(prefix + "gate.e_score_correction_bias",
                    random_matrix<float>(1, experts, 2).transpose());
  }
  file.metadata("config", config);
  return file;
}

TEST_F(GgufLoading, GivesWhatTheSameModelInSafetensorsGives) {
  const auto expect_twins = [&](const GgufModel& model, const moe::io::SafetensorsWriter& twin) {
    write(model.file.bytes());
    const moe::io::GgufFile file(path_);
    const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1,
                                                {.product = moe::ProductKind::widened});
    write(twin.bytes());
    expect_same(layer, moe::io::Checkpoint::open(path_).layer<float>(1));
  };
  const std::vector<std::string> projections{"gate_proj", "up_proj", "down_proj"};
  const auto type = moe::io::GgufType::q8_0;
  const GgufModel mixtral("llama", type);
  expect_twins(mixtral, in_safetensors(mixtral, "block_sparse_moe", {"w1", "w3", "w2"},
                                       R"({"model_type": "mixtral", "hidden_size": 256,
      "intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2})"));
  const GgufModel qwen3("qwen3moe", type);
  expect_twins(qwen3, in_safetensors(qwen3, "mlp", projections,
                                     R"({"model_type": "qwen3_moe", "hidden_size": 256,
      "moe_intermediate_size": 512, "num_experts": 4, "num_experts_per_tok": 2,
      "norm_topk_prob": true})"));
  for (const std::uint32_t groups : {1U, 2U}) {
    GgufModel deepseek = GgufModel::deepseek(type, type);
    if (groups > 1) {
      deepseek.file.entry("deepseek2.expert_group_count", groups);
      deepseek.file.entry("deepseek2.expert_group_used_count", std::uint32_t{1});
    }
    expect_twins(deepseek, in_safetensors(deepseek, "mlp", projections,
                                          R"({"model_type": "deepseek_v3", "hidden_size": 256,
      "moe_intermediate_size": 512, "n_routed_experts": 4, "num_experts_per_tok": 2,
      "n_shared_experts": 1, "topk_group": 1, "scoring_func": "sigmoid", "norm_topk_prob": true,
      "routed_scaling_factor": 2.5, "topk_method": "noaux_tc", "n_group": )" +
                                              std::to_string(groups) + "}"));
  }
}

TEST_F(GgufLoading, OfOtherGridsIsQuantisedToTheFormatThatIsNamed) {
  for (const auto type : {moe::io::GgufType::q4_k, moe::io::GgufType::q6_k}) {
    const GgufModel model("llama", type);
    write(model.file.bytes());
    const moe::io::GgufFile file(path_);
    const moe::io::LayerConfig config = moe::io::layer_config(file);
    EXPECT_NE(refusal([&] { moe::io::load_gguf_block(file, config, 1); }).find("no format has"),
              std::string::npos);
    const auto format = moe::format_of("int8-g32");
    const auto layer =
        moe::io::load_gguf_block(file, config, 1, {.format = moe::ExpertFormat{format, format}});
    for (Index e = 0; e < experts; ++e) {
      const Matrix<float>& expected = model.routed[static_cast<std::size_t>(e)].down;
      EXPECT_LT((quantized(layer).expert(e).down - expected).norm(), 0.01 * expected.norm());
    }
  }
}

TEST_F(GgufLoading, IsCalibrated) {
  const GgufModel model("llama", moe::io::GgufType::q6_k);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const QuantizedLoading loading = calibrated_with(random_matrix<float>(20, GgufModel::width, 5));
  expect_calibrated(moe::io::load_gguf_block(file, moe::io::layer_config(file), 1, loading),
                    loading, model.routed);
}

TEST_F(GgufLoading, OfDeepSeekAndGptOss) {
  const GgufModel deepseek = GgufModel::deepseek(moe::io::GgufType::q8_0, moe::io::GgufType::f32);
  write(deepseek.file.bytes());
  {
    const moe::io::GgufFile file(path_);
    const moe::io::LayerConfig config = moe::io::layer_config(file);
    EXPECT_EQ(config.family, moe::io::Family::deepseek_v3);
    EXPECT_EQ(config.shared_d_ff, GgufModel::hidden);
    EXPECT_EQ(config.rule.scale, 2.5);
    const auto layer = moe::io::load_gguf_block(file, config, 1);
    expect_weights(quantized(layer), deepseek.routed);
    EXPECT_NE(layer.router().target<moe::TopKRouter<float>>()->weights().selection_bias.size(), 0);
  }
  GgufModel oss("gpt-oss", moe::io::GgufType::mxfp4);
  oss.add_biases();
  write(oss.file.bytes());
  const moe::io::GgufFile file(path_);
  const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1);
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::ClampedSwiGlu>>();
  ASSERT_NE(bank, nullptr);
  expect_weights(*bank, oss.routed);
  EXPECT_EQ(bank->expert(2).up_bias, oss.routed[2].up_bias);
}

/// The bank of a layer's shared expert, if it is one of this type.
template <class Bank>
const Bank* shared_bank(const moe::io::CheckpointLayer<float>& layer) {
  return layer.shared().bank()->target<Bank>();
}

TEST_F(GgufLoading, SharedExpertsHaveTheirCodesWhereAFormatHas) {
  using moe::io::GgufType;
  using Codes = moe::QuantizedExperts<moe::SwiGlu>;
  for (const GgufType type : {GgufType::q8_0, GgufType::q6_k, GgufType::f32}) {
    const GgufModel model = GgufModel::deepseek(GgufType::q4_0, type);
    write(model.file.bytes());
    const moe::io::GgufFile file(path_);
    const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1,
                                                {.product = moe::ProductKind::widened});
    const auto* const codes = shared_bank<Codes>(layer);
    EXPECT_EQ(codes != nullptr, type == GgufType::q8_0);
    const auto* const floats = shared_bank<moe::SwiGluExperts<float>>(layer);
    ASSERT_EQ(floats != nullptr, type != GgufType::q8_0);
    const auto its = codes != nullptr ? codes->expert(0) : floats->expert(0);
    EXPECT_EQ(its.gate, model.shared.gate);
    EXPECT_EQ(its.up, model.shared.up);
    EXPECT_EQ(its.down, model.shared.down);
    if (codes == nullptr) continue;
    EXPECT_EQ(codes->product(), moe::ProductKind::widened);
  }
}

TEST_F(GgufLoading, ExpertsOfSeveralTypesKeepThem) {
  using moe::io::GgufType;
  const GgufModel model(
      "llama",
      [](const std::string& part, Index e) {
        if (e == 1) return GgufType::f16;
        return part == "down" ? GgufType::q8_0 : GgufType::q4_0;
      },
      true);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1);
  expect_weights(quantized(layer), model.routed);
  EXPECT_EQ(quantized(layer).format(0).up, moe::format_of("int4-g32"));
  EXPECT_EQ(quantized(layer).format(0).down, moe::format_of("int8-g32"));
  EXPECT_EQ(quantized(layer).format(1).up, moe::format_of("f16"));
}

TEST_F(GgufLoading, PartsWithoutTheFormatThatIsNamedAreQuantised) {
  using moe::io::GgufType;
  const GgufModel model(
      "llama",
      [](const std::string& part, Index /*e*/) {
        return part == "down" ? GgufType::q6_k : GgufType::q4_0;
      },
      false);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const moe::io::LayerConfig config = moe::io::layer_config(file);
  const std::string text = refusal([&] { moe::io::load_gguf_block(file, config, 1); });
  EXPECT_NE(text.find("ffn_down_exps.weight"), std::string::npos) << text;
  EXPECT_NE(text.find("no format has the grid of Q6_K"), std::string::npos) << text;
  const QuantizedLoading loading = calibrated_with(random_matrix<float>(20, GgufModel::width, 5));
  const auto layer = moe::io::load_gguf_block(file, config, 1, loading);
  moe::QuantizedExperts<moe::SwiGlu> expected(quantized(layer).config(), *loading.format);
  for (Index e = 0; e < experts; ++e) {
    const auto& exact = model.routed[static_cast<std::size_t>(e)];
    const auto moments = moe::expert_moments(exact, moe::SwiGlu{}, loading.calibration);
    expected.set_expert(e, exact.weights(), moments.options());
    const auto its = quantized(layer).expert(e);
    EXPECT_EQ(its.gate, exact.gate) << "code by code";
    EXPECT_EQ(its.up, exact.up);
    EXPECT_EQ(its.down, expected.expert(e).down);
  }
}

TEST_F(GgufLoading, AGateOfAnotherTypeNeedsTheNameOfAFormat) {
  using moe::io::GgufType;
  const GgufModel model(
      "llama",
      [](const std::string& part, Index e) {
        return part == "gate" && e == 2 ? GgufType::q8_0 : GgufType::q4_0;
      },
      true);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const moe::io::LayerConfig config = moe::io::layer_config(file);
  const std::string text = refusal([&] { moe::io::load_gguf_block(file, config, 1); });
  EXPECT_NE(text.find("blk.1.ffn_gate.2.weight"), std::string::npos) << text;
  EXPECT_NE(text.find("Q8_0"), std::string::npos) << text;
  const auto format = moe::format_of("int8-g32");
  const auto layer =
      moe::io::load_gguf_block(file, config, 1, {.format = moe::ExpertFormat{format, format}});
  EXPECT_EQ(quantized(layer).expert(2).gate, model.routed[2].gate);
}

TEST_F(GgufLoading, ExpertsOfAPackedFile) {
  const GgufModel model = GgufModel::deepseek(moe::io::GgufType::q8_0, moe::io::GgufType::q8_0);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1);
  const std::string packed = path_ + ".packed";
  moe::io::PackedWriter writer(packed, {{"layers.1", moe::io::describe(quantized(layer))}});
  writer.write_bank("layers.1", quantized(layer));
  writer.finish();
  expect_same(layer, moe::io::packed_layer(file, 1, moe::io::PackedFile(packed)));
  moe::ExpertsConfig sizes = quantized(layer).config();
  sizes.d_ff += 32;
  const moe::QuantizedExperts<moe::SwiGlu> wider(
      sizes, moe::ExpertFormat{moe::format_of("int8-g32"), moe::format_of("int8-g32")});
  moe::io::PackedWriter other(packed, {{"layers.1", moe::io::describe(wider)}});
  other.write_bank("layers.1", wider);
  other.finish();
  const std::string text =
      refusal([&] { moe::io::packed_layer(file, 1, moe::io::PackedFile(packed)); });
  EXPECT_NE(text.find("has other sizes"), std::string::npos) << text;
  std::filesystem::remove(packed);
}

TEST_F(GgufLoading, BiasesStayWhereAPartIsQuantised) {
  GgufModel model("gpt-oss", moe::io::GgufType::mxfp4);
  model.add_biases();
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const auto layer = moe::io::load_gguf_block(
      file, moe::io::layer_config(file), 1,
      {.format = moe::ExpertFormat{moe::format_of("mxfp4"), moe::format_of("int8-g32")}});
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::ClampedSwiGlu>>();
  ASSERT_NE(bank, nullptr);
  const moe::ExpertMatrices<float> its = bank->expert(3);
  EXPECT_EQ(its.gate, model.routed[3].gate);
  EXPECT_NE(its.down, model.routed[3].down);
  EXPECT_LT((its.down - model.routed[3].down).norm(), 0.01 * model.routed[3].down.norm());
  EXPECT_EQ(its.gate_bias, model.routed[3].gate_bias);
  EXPECT_EQ(its.up_bias, model.routed[3].up_bias);
  EXPECT_EQ(its.down_bias, model.routed[3].down_bias);
}

TEST_F(GgufLoading, AllTensorsMustBeThereBeforeExpertsAreRead) {
  const GgufModel oss("gpt-oss", moe::io::GgufType::mxfp4);
  write(oss.file.bytes());
  const auto error = [&] {
    const moe::io::GgufFile file(path_);
    return refusal([&] { moe::io::load_gguf_block(file, moe::io::layer_config(file), 1); });
  };
  EXPECT_NE(error().find("ffn_gate_inp.bias"), std::string::npos);
  GgufModel deepseek("deepseek2", moe::io::GgufType::q8_0);
  deepseek.file.entry("deepseek2.expert_gating_func", std::uint32_t{2});
  write(deepseek.file.bytes());
  EXPECT_NE(error().find("exp_probs_b.bias"), std::string::npos);
  // As many experts as would take all memory.
  GgufWriter huge;
  huge.entry("general.architecture", "llama");
  huge.entry("llama.embedding_length", std::uint32_t{4096});
  huge.entry("llama.expert_count", std::uint32_t{900'000'000});
  huge.entry("llama.expert_used_count", std::uint32_t{2});
  huge.entry("llama.feed_forward_length", std::uint32_t{14336});
  huge.floats("blk.1.ffn_gate_inp.weight", {experts, 4096}, Matrix<float>::Zero(experts, 4096));
  write(huge.bytes());
  EXPECT_NE(error().find("ffn_gate_inp.weight"), std::string::npos);
}

/// A model in several files: all that is no tensor in the first one.
class SplitGguf : public testing::Test {
 protected:
  std::string part(int number, int of = 2) const {
    return folder_ + "/m-0000" + std::to_string(number) + "-of-0000" + std::to_string(of) + ".gguf";
  }
  static void write(const std::string& path, const GgufWriter& file) {
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << file.bytes();
  }
  /// Part `number`, counted from one, with one vector.
  static GgufWriter with_vector(int number, int count, const std::string& name, float value) {
    GgufWriter file;
    file.entry("split.no", static_cast<std::uint32_t>(number - 1));
    file.entry("split.count", static_cast<std::uint32_t>(count));
    file.floats(name, {2}, Matrix<float>::Constant(1, 2, value));
    return file;
  }
  std::string error(const std::string& path) const {
    return refusal([&] { const moe::io::GgufFile file(path); });
  }
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string folder_ =
      (std::filesystem::temp_directory_path() / ("moe_split_" + std::to_string(getpid()))).string();
};

TEST_F(SplitGguf, AllPartsAreRead) {
  write(part(1), with_vector(1, 2, "a", 1));
  write(part(2), with_vector(2, 2, "b", 2));
  const moe::io::GgufFile file(part(1));
  EXPECT_EQ(file.path(), part(1));
  EXPECT_EQ(file.path_of(file.tensor("b")), part(2));
  EXPECT_EQ(file.files(), (std::vector<std::string>{part(1), part(2)}));
  for (const char* name : {"a", "b"}) {
    float values[2];
    file.tensor(name).decode_row(0, values);
    EXPECT_EQ(values[1], name[0] == 'a' ? 1 : 2);
  }
}

TEST_F(SplitGguf, ErrorsOfTensorsNameTheirFile) {
  GgufWriter first;
  first.entry("split.no", std::uint32_t{0});
  first.entry("split.count", std::uint32_t{2});
  first.entry("general.architecture", "llama");
  first.entry("llama.embedding_length", std::uint32_t{32});
  first.entry("llama.expert_count", std::uint32_t{2});
  first.entry("llama.expert_used_count", std::uint32_t{1});
  first.entry("llama.feed_forward_length", std::uint32_t{64});
  first.floats("blk.0.ffn_gate_inp.weight", {2, 32}, Matrix<float>::Ones(2, 32));
  write(part(1), first);
  // Tensors whose inner size, or one of whose weights, is wrong.
  for (const bool has_infinity : {false, true}) {
    GgufWriter second;
    second.entry("split.no", std::uint32_t{1});
    second.entry("split.count", std::uint32_t{2});
    std::string codes(2 * 64 * 32 * 2, '\0');
    for (const char* name : {"gate", "up"})
      second.tensor("blk.0.ffn_" + std::string(name) + "_exps.weight", {2, 64, 32},
                    moe::io::GgufType::f16, codes);
    if (has_infinity) codes[1001] = 0x7c;
    second.tensor("blk.0.ffn_down_exps.weight",
                  has_infinity ? std::vector<Index>{2, 32, 64} : std::vector<Index>{2, 64, 32},
                  moe::io::GgufType::f16, codes);
    write(part(2), second);
    const moe::io::GgufFile file(part(1));
    const std::string text =
        refusal([&] { moe::io::load_gguf_block(file, moe::io::layer_config(file), 0); });
    EXPECT_NE(text.find(part(2)), std::string::npos) << text;
    EXPECT_NE(text.find("ffn_down_exps.weight"), std::string::npos) << text;
  }
}

TEST_F(SplitGguf, PartsThatDoNotFitAreRefused) {
  write(part(1), with_vector(1, 2, "a", 1));
  EXPECT_THROW(moe::io::GgufFile(part(1)), std::system_error) << "the second is missing";
  write(part(2), with_vector(2, 2, "b", 2));
  EXPECT_NE(error(part(2)).find("is a later part"), std::string::npos);
  write(part(2), with_vector(1, 2, "b", 2));
  EXPECT_NE(error(part(1)).find("is not part 2 of 2"), std::string::npos);
  write(part(2), with_vector(2, 3, "b", 2));
  EXPECT_NE(error(part(1)).find("is not part 2 of 2"), std::string::npos);
  write(part(2), with_vector(2, 2, "a", 2));
  EXPECT_NE(error(part(1)).find("two tensors"), std::string::npos);
  EXPECT_NE(error(part(1)).find(part(2)), std::string::npos) << "the file that has it";
  write(folder_ + "/other.gguf", with_vector(1, 2, "a", 1));
  EXPECT_NE(error(folder_ + "/other.gguf").find("-00001-of-00002.gguf"), std::string::npos);
  write(part(1), with_vector(1, 100000, "a", 1));
  EXPECT_NE(error(part(1)).find("split.count makes no sense"), std::string::npos);
}

TEST_F(GgufLoading, OfAnotherKindIsRefused) {
  const GgufModel other("gpt2", moe::io::GgufType::q8_0);
  write(other.file.bytes());
  EXPECT_NE(refusal([&] { moe::io::layer_config(moe::io::GgufFile(path_)); }).find("'gpt2'"),
            std::string::npos);
  // A scale that is infinite.
  GgufModel model("llama", moe::io::GgufType::q8_0);
  std::string bytes = model.file.bytes();
  write(bytes);
  const auto offset =
      static_cast<std::size_t>(moe::io::GgufFile(path_).tensor("blk.1.ffn_up_exps.weight").offset);
  bytes[offset + 34 * 100] = 0;
  bytes[offset + 34 * 100 + 1] = 0x7c;
  write(bytes);
  const moe::io::GgufFile file(path_);
  const moe::io::LayerConfig config = moe::io::layer_config(file);
  const std::string text = refusal([&] { moe::io::load_gguf_block(file, config, 1); });
  EXPECT_NE(text.find("ffn_up_exps.weight"), std::string::npos) << text;
  EXPECT_NE(text.find("a scale is not finite"), std::string::npos) << text;
  EXPECT_THROW(moe::io::load_gguf_block(file, config, 0), moe::FormatError) << "no such layer";
}

/// Bytes of a block of expert 2's fourth output that are changed, and what the loader says to that.
struct BadBlock {
  moe::io::GgufType type;
  std::size_t byte;    // of the block
  std::string bytes;   // what is written from there on
  const char* format;  // that experts are to have, or null: as they are
  const char* problem;
};

TEST_F(GgufLoading, ErrorsNameTheTensorAndTheRow) {
  using moe::io::GgufType;
  const std::string infinity("\x00\x7c", 2);
  const std::string nan("\x01\x7e", 2);
  const std::string zero(2, '\0');
  for (const BadBlock& bad : {BadBlock{GgufType::q8_0, 0, nan, nullptr, "a scale is not finite"},
                              BadBlock{GgufType::q8_0, 0, zero, nullptr, "scale of a weight is"},
                              BadBlock{GgufType::q4_0, 0, infinity, nullptr, "a scale is not"},
                              BadBlock{GgufType::q4_0, 0, nan, "int8", "a scale is not finite"},
                              BadBlock{GgufType::q8_0, 0, zero, "int8", "scale of a weight is"},
                              BadBlock{GgufType::q4_0, 0, zero, "bf16", "scale of a weight is"},
                              BadBlock{GgufType::mxfp4, 0, "\xff", nullptr, "is not finite"},
                              BadBlock{GgufType::q4_k, 0, nan, "int8", "a value is not finite"},
                              BadBlock{GgufType::q4_k, 2, infinity, "int8", "is not finite"},
                              BadBlock{GgufType::q6_k, 208, nan, "int8", "a value is not finite"},
                              BadBlock{GgufType::bf16, 0, "\x80\xff", nullptr, "is not finite"},
                              BadBlock{GgufType::f16, 0, infinity, "int8", "is not finite"}}) {
    const GgufModel model("llama", bad.type);
    SCOPED_TRACE(moe::io::detail::gguf_type(bad.type).name);
    const std::string name = "blk.1.ffn_up_exps.weight";
    std::string all = model.file.bytes();
    write(all);
    const moe::io::GgufFile whole(path_);
    const moe::io::GgufTensor& tensor = whole.tensor(name);
    const std::uint64_t row = tensor.offset + (2 * GgufModel::hidden + 3) * tensor.row_bytes();
    // The last block of the row: the row is named all the same.
    const auto block = static_cast<std::size_t>(moe::io::detail::gguf_type(bad.type).bytes);
    const auto at = static_cast<std::size_t>(row + tensor.row_bytes()) - block + bad.byte;
    all.replace(at, bad.bytes.size(), bad.bytes);
    write(all);
    const moe::io::GgufFile file(path_);
    QuantizedLoading loading{.search = moe::ScaleSearch::nearest};
    if (bad.format != nullptr)
      loading.format = moe::ExpertFormat{moe::format_of(bad.format), moe::format_of(bad.format)};
    const auto error = test_support::format_error(
        [&] { moe::io::load_gguf_block(file, moe::io::layer_config(file), 1, loading); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->tensor(), name);
    EXPECT_EQ(error->offset(), row);
    EXPECT_NE(std::string(error->what()).find(bad.problem), std::string::npos) << error->what();
  }
}

/// Of Q4_0, quantisers leave groups of zeros so.
TEST_F(GgufLoading, AGroupOfZerosMayHaveAScaleOfZero) {
  using moe::io::GgufType;
  for (const GgufType type : {GgufType::q8_0, GgufType::q4_0}) {
    const auto& info = moe::io::detail::gguf_type(type);
    SCOPED_TRACE(info.name);
    const GgufModel model("llama", type);
    std::string all = model.file.bytes();
    write(all);
    const moe::io::GgufFile whole(path_);
    const moe::io::GgufTensor& tensor = whole.tensor("blk.1.ffn_up_exps.weight");
    const auto row =
        static_cast<std::size_t>(tensor.offset + (2 * GgufModel::hidden + 3) * tensor.row_bytes());
    const auto bytes = static_cast<std::size_t>(info.bytes);
    // The codes of the block all stand for another value than zero.
    all.replace(row, bytes, std::string(2, '\0') + std::string(bytes - 2, '\x33'));
    write(all);
    const moe::io::GgufFile file(path_);
    for (const char* format : {"", "bf16"}) {
      QuantizedLoading loading{.search = moe::ScaleSearch::nearest};
      if (*format != 0)
        loading.format = moe::ExpertFormat{moe::format_of(format), moe::format_of(format)};
      const auto block = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1, loading);
      const Matrix<float> up = quantized(block).expert(2).up;
      EXPECT_EQ(up.row(3).head(32), Matrix<float>::Zero(1, 32)) << format;
      EXPECT_GT(up.row(3).tail(up.cols() - 32).norm(), 0) << format;
    }
  }
}

TEST_F(GgufLoading, BiasesThatAreNoNumbersAreRefused) {
  GgufModel model("gpt-oss", moe::io::GgufType::mxfp4);
  model.add_biases();
  std::string all = model.file.bytes();
  write(all);
  const std::string name = "blk.1.ffn_down_exps.bias";
  const moe::io::GgufFile whole(path_);
  const moe::io::GgufTensor& tensor = whole.tensor(name);
  const std::uint64_t row = tensor.offset + 2 * tensor.row_bytes();
  all.replace(static_cast<std::size_t>(row) + 8, 4, std::string("\0\0\x80\x7f", 4));
  write(all);
  const moe::io::GgufFile file(path_);
  const auto error = test_support::format_error(
      [&] { moe::io::load_gguf_block(file, moe::io::layer_config(file), 1); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->tensor(), name);
  EXPECT_EQ(error->offset(), row);
}

TEST_F(GgufLoading, OfSixteenBitsThatAreNoNumbersIsRefused) {
  for (const bool is_half : {false, true}) {
    const auto type = is_half ? moe::io::GgufType::f16 : moe::io::GgufType::bf16;
    GgufWriter file;
    file.entry("general.architecture", "llama");
    file.entry("llama.embedding_length", std::uint32_t{32});
    file.entry("llama.expert_count", std::uint32_t{experts});
    file.entry("llama.expert_used_count", std::uint32_t{2});
    file.entry("llama.feed_forward_length", std::uint32_t{64});
    file.floats("blk.0.ffn_gate_inp.weight", {experts, 32}, random_matrix<float>(experts, 32, 1));
    std::string codes(experts * 64 * 32 * 2, '\0');
    for (const char* part : {"gate", "up"})
      file.tensor("blk.0.ffn_" + std::string(part) + "_exps.weight", {experts, 64, 32}, type,
                  codes);
    codes[4000] = is_half ? '\x01' : '\x80';  // NaN, and infinity
    codes[4001] = is_half ? '\x7c' : '\x7f';
    file.tensor("blk.0.ffn_down_exps.weight", {experts, 32, 64}, type, codes);
    write(file.bytes());
    const moe::io::GgufFile opened(path_);
    const std::string text =
        refusal([&] { moe::io::load_gguf_block(opened, moe::io::layer_config(opened), 0); });
    EXPECT_NE(text.find("ffn_down_exps.weight"), std::string::npos) << text;
    EXPECT_NE(text.find("a weight is not finite"), std::string::npos) << text;
  }
}

}  // namespace gguf_loader_test
