// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints in eight and four bits, made here, against the weights that their codes say.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/gguf_loader.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/quantized_loader.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/moe.hpp>

#include "support/gguf_writer.hpp"
#include "support/layers.hpp"
#include "support/temporary_file.hpp"

namespace quantized_loader_test {

using moe::Index;
using moe::Matrix;
using moe::io::CheckpointLayer;
using moe::io::QuantizedLoading;
using test_support::GgufWriter;
using test_support::random_matrix;

class Loading : public test_support::TemporaryFile {};

/// Two layers of the same bits: by outputs, on the same tokens.
void expect_same(CheckpointLayer<float> a, CheckpointLayer<float> b) {
  const Matrix<float> x = random_matrix<float>(21, a.d_model(), 9);
  Matrix<float> y(21, a.d_model());
  Matrix<float> z(21, a.d_model());
  a.forward(x, y);
  b.forward(x, z);
  EXPECT_TRUE(y.allFinite());
  EXPECT_GT(y.norm(), 0);
  EXPECT_EQ(y, z);
}

/// The bank that a layer has, of quantised SwiGLU experts.
const moe::QuantizedExperts<moe::SwiGlu>& quantized(const CheckpointLayer<float>& layer) {
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::SwiGlu>>();
  EXPECT_NE(bank, nullptr);
  return *bank;
}

constexpr Index d_model = 160;
constexpr Index d_ff = 136;
constexpr Index experts = 4;

/// DeepSeek-V3 as published: eight bits, with scales of blocks of 128 by 128.
struct Fp8Model {
  moe::io::SafetensorsWriter file;
  std::vector<moe::ExpertMatrices<float>> routed;
  std::string config;

  /// Adds a matrix, and gives what its codes and scales say.
  Matrix<float> add(const std::string& name, Index rows, Index cols, std::uint64_t seed) {
    const Matrix<float> scales =
        random_matrix<float>((rows + 127) / 128, (cols + 127) / 128, seed).cwiseAbs() * 0.01F;
    std::string codes;
    Matrix<float> weights(rows, cols);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < cols; ++c) {
        auto code = static_cast<std::uint8_t>(
            moe::detail::mix_bits(seed + static_cast<std::uint64_t>(r * cols + c)));
        if ((code & 0x7fU) >= 0x68U) code &= 0xbfU;  // Not too large, and no NaN.
        codes += static_cast<char>(code);
        weights(r, c) = moe::e4m3_to_float(code) * scales(r / 128, c / 128);
      }
    }
    file.add(name, "F8_E4M3", {rows, cols}, codes);
    file.add(name + "_scale_inv", scales);
    return weights;
  }

  Fp8Model() {
    const std::string prefix = "model.layers.0.mlp.";
    file.add(prefix + "gate.weight", random_matrix<float>(experts, d_model, 1));
    file.add_vector(prefix + "gate.e_score_correction_bias", random_matrix<float>(experts, 1, 2));
    std::uint64_t seed = 100;
    for (Index e = 0; e <= experts; ++e) {
      const std::string name =
          e == experts ? prefix + "shared_experts." : prefix + "experts." + std::to_string(e) + ".";
      moe::ExpertMatrices<float> expert;
      expert.gate = add(name + "gate_proj.weight", d_ff, d_model, seed += 100000);
      expert.up = add(name + "up_proj.weight", d_ff, d_model, seed += 100000);
      expert.down = add(name + "down_proj.weight", d_model, d_ff, seed += 100000);
      if (e < experts) routed.push_back(std::move(expert));
    }
    file.metadata("config", R"({"model_type": "deepseek_v3", "hidden_size": 160,
      "moe_intermediate_size": 136, "n_routed_experts": 4, "num_experts_per_tok": 2,
      "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid",
      "topk_method": "noaux_tc"})");
  }
};

CheckpointLayer<float> load(const moe::io::Checkpoint& checkpoint,
                            const QuantizedLoading& loading) {
  return moe::io::quantized_layer(checkpoint, 0, loading);
}

TEST_F(Loading, EightBitsOfDeepSeekV3) {
  const Fp8Model model;
  write(model.file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const auto floats = checkpoint.layer<float>(0);
  const auto layer = load(checkpoint, {.product = moe::ProductKind::widened});
  const auto& bank = quantized(layer);
  EXPECT_EQ(bank.format(0).up, moe::format_of("fp8"));
  for (Index e = 0; e < experts; ++e) {
    const moe::ExpertMatrices<float> its = bank.expert(e);
    const moe::ExpertMatrices<float>& expected = model.routed[static_cast<std::size_t>(e)];
    EXPECT_EQ(its.gate, expected.gate);
    EXPECT_EQ(its.up, expected.up);
    EXPECT_EQ(its.down, expected.down);
  }
  expect_same(floats, layer);
  // Quantised anew, to another format.
  const auto four =
      load(checkpoint,
           {.format = moe::ExpertFormat{moe::format_of("int8-g32"), moe::format_of("int4-g32")}});
  const Matrix<float> error = quantized(four).expert(1).up - model.routed[1].up;
  EXPECT_LT(error.norm(), 0.02 * model.routed[1].up.norm());
  EXPECT_GT(error.norm(), 0);
}

/// The error of a checkpoint whose bytes were changed.
std::string refusal(const std::function<void()>& load) {
  try {
    load();
  } catch (const moe::FormatError& error) {
    return error.what();
  }
  return {};
}

/// The bank has the experts that its formats, moments and exact weights give.
void expect_calibrated(const CheckpointLayer<float>& layer, const QuantizedLoading& loading,
                       const std::vector<moe::ExpertMatrices<float>>& exact) {
  const auto& bank = quantized(layer);
  moe::QuantizedExperts<moe::SwiGlu> expected(bank.config(), *loading.format);
  bool differs = false;
  for (Index e = 0; e < experts; ++e) {
    const auto& expert = exact[static_cast<std::size_t>(e)];
    const auto moments = moe::expert_moments(expert, moe::SwiGlu{}, loading.calibration);
    expected.set_expert(e, expert.weights());
    differs = differs || bank.expert(e).down != expected.expert(e).down;
    expected.set_expert(e, expert.weights(), moments.options(loading.search));
    EXPECT_EQ(bank.expert(e).gate, expected.expert(e).gate);
    EXPECT_EQ(bank.expert(e).up, expected.expert(e).up);
    EXPECT_EQ(bank.expert(e).down, expected.expert(e).down);
  }
  EXPECT_TRUE(differs) << "calibration changes nothing";
}

QuantizedLoading calibrated_with(const Matrix<float>& x) {
  const auto format = moe::format_of("int4-g32");
  return {.format = moe::ExpertFormat{format, format}, .calibration = x};
}

TEST_F(Loading, CalibrationWeighsErrors) {
  const Fp8Model model;
  write(model.file.bytes());
  const QuantizedLoading loading = calibrated_with(random_matrix<float>(50, d_model, 5));
  expect_calibrated(load(moe::io::Checkpoint::open(path_), loading), loading, model.routed);
}

TEST_F(Loading, ExpertsOfAPackedFile) {
  const Fp8Model model;
  write(model.file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const auto format = moe::format_of("int8-g32");
  const auto layer = load(checkpoint, {.format = moe::ExpertFormat{format, format}});
  const auto& bank = quantized(layer);
  const std::string packed = path_ + ".packed";
  const auto write_packed = [&](const std::string& name, const auto& of) {
    moe::io::PackedWriter writer(packed, {{name, moe::io::describe(of)}});
    writer.write_bank(name, of);
    writer.finish();
    return moe::io::PackedFile(packed);
  };
  expect_same(layer, moe::io::packed_layer(checkpoint, 0, write_packed("layers.0", bank)));
  expect_same(
      load(checkpoint,
           {.format = moe::ExpertFormat{format, format}, .product = moe::ProductKind::widened}),
      moe::io::packed_layer(checkpoint, 0, moe::io::PackedFile(packed), moe::ProductKind::widened));
  const auto error = [&](const moe::io::PackedFile& file) {
    return refusal([&] { moe::io::packed_layer(checkpoint, 0, file); });
  };
  EXPECT_NE(error(write_packed("layers.1", bank)).find("there is no such bank"), std::string::npos);
  moe::ExpertsConfig sizes = bank.config();
  sizes.d_ff += 32;
  const moe::QuantizedExperts<moe::SwiGlu> wider(sizes, {format, format});
  EXPECT_NE(error(write_packed("layers.0", wider)).find("has other sizes"), std::string::npos);
  const moe::QuantizedExperts<moe::Silu> plain(bank.config(), {format, format});
  EXPECT_NE(error(write_packed("layers.0", plain)).find("has the activation"), std::string::npos);
  std::filesystem::remove(packed);
}

TEST_F(Loading, RefusesEightBitsThatAreNoNumbers) {
  const std::string weight = "model.layers.0.mlp.experts.2.up_proj.weight";
  const auto with = [&](std::size_t offset, const std::string& bytes, bool of_scales) {
    const Fp8Model model;
    std::string all = model.file.bytes();
    write(all);
    const auto tensors = moe::io::Tensors::open(path_);
    const auto& tensor = tensors.tensor(of_scales ? weight + "_scale_inv" : weight);
    all.replace(static_cast<std::size_t>(tensor.offset) + offset, bytes.size(), bytes);
    write(all);
    return refusal([&] {
      const auto checkpoint = moe::io::Checkpoint::open(path_);
      load(checkpoint, {});
    });
  };
  const std::string nan = with(777, "\x7f", false);
  EXPECT_NE(nan.find("experts.2.up_proj.weight'"), std::string::npos) << nan;
  EXPECT_NE(nan.find("not finite"), std::string::npos) << nan;
  EXPECT_NE(with(4, std::string("\0\0\x80\x7f", 4), true).find("scale is negative or not finite"),
            std::string::npos);
  EXPECT_NE(with(4, std::string("\0\0\x80\xbf", 4), true).find("scale is negative"),
            std::string::npos);
  EXPECT_NE(with(4, std::string(4, '\0'), true).find("the scale of a weight is zero"),
            std::string::npos);
  EXPECT_EQ(with(4, std::string("\0\0\x80\x3f", 4), true), "");
}

/// gpt-oss as published: mxfp4.
struct Mxfp4Model {
  static constexpr Index width = 64;
  static constexpr Index hidden = 96;
  moe::io::SafetensorsWriter file;
  Matrix<float> gate_up;  // (E 2 F, D)
  Matrix<float> down;     // (E D, F)

  Matrix<float> add(const std::string& name, Index rows, Index cols, std::uint64_t seed,
                    int bad_scale = -1) {
    const Index groups = cols / 32;
    std::string blocks;
    std::string scales;
    Matrix<float> weights(experts * rows, cols);
    for (Index r = 0; r < experts * rows; ++r) {
      for (Index g = 0; g < groups; ++g) {
        const std::uint64_t bits =
            moe::detail::mix_bits(seed + static_cast<std::uint64_t>(r * groups + g));
        auto scale = static_cast<std::uint8_t>(118 + bits % 8);
        if (bad_scale >= 0 && r == 5 && g == 1) scale = static_cast<std::uint8_t>(bad_scale);
        scales += static_cast<char>(scale);
        for (Index i = 0; i < 16; ++i) {
          const auto byte = static_cast<std::uint8_t>(
              moe::detail::mix_bits(bits + static_cast<std::uint64_t>(i)));
          blocks += static_cast<char>(byte);
          weights(r, 32 * g + 2 * i) = moe::e2m1_to_float(byte) * moe::e8m0_to_float(scale);
          weights(r, 32 * g + 2 * i + 1) =
              moe::e2m1_to_float(static_cast<std::uint8_t>(byte >> 4U)) * moe::e8m0_to_float(scale);
        }
      }
    }
    file.add(name + "_blocks", "U8", {experts, rows, groups, 16}, blocks);
    file.add(name + "_scales", "U8", {experts, rows, groups}, scales);
    return weights;
  }

  explicit Mxfp4Model(int bad_scale = -1) {
    const std::string prefix = "model.layers.0.mlp.";
    file.add(prefix + "router.weight", random_matrix<float>(experts, width, 1));
    file.add_vector(prefix + "router.bias", random_matrix<float>(experts, 1, 2));
    gate_up = add(prefix + "experts.gate_up_proj", 2 * hidden, width, 10, bad_scale);
    down = add(prefix + "experts.down_proj", width, hidden, 20000);
    file.add(prefix + "experts.gate_up_proj_bias", random_matrix<float>(experts, 2 * hidden, 3));
    file.add(prefix + "experts.down_proj_bias", random_matrix<float>(experts, width, 4));
    file.metadata("config", R"({"model_type": "gpt_oss", "hidden_size": 64,
      "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2})");
  }
};

TEST_F(Loading, FourBitsOfGptOss) {
  const Mxfp4Model model;
  write(model.file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const auto floats = checkpoint.layer<float>(0);
  const auto layer = load(checkpoint, {.product = moe::ProductKind::widened});
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::ClampedSwiGlu>>();
  ASSERT_NE(bank, nullptr);
  EXPECT_EQ(bank->format(3).down, moe::format_of("mxfp4"));
  for (Index e = 0; e < experts; ++e) {
    const moe::ExpertMatrices<float> its = bank->expert(e);
    for (Index f = 0; f < Mxfp4Model::hidden; ++f) {
      EXPECT_EQ(its.gate.row(f), model.gate_up.row(2 * (e * Mxfp4Model::hidden + f)));
      EXPECT_EQ(its.up.row(f), model.gate_up.row(2 * (e * Mxfp4Model::hidden + f) + 1));
    }
    EXPECT_EQ(its.down, model.down.middleRows(e * Mxfp4Model::width, Mxfp4Model::width));
  }
  expect_same(floats, layer);
  // Without a configuration, names and shapes tell as much.
  moe::io::SafetensorsWriter bare = model.file;
  bare.header().erase("__metadata__");
  write(bare.bytes());
  const moe::io::LayerConfig config = moe::io::Checkpoint::open(path_).layer_config();
  EXPECT_EQ(config.family, moe::io::Family::gpt_oss);
  EXPECT_EQ(config.d_ff, Mxfp4Model::hidden);
}

TEST_F(Loading, RefusesExpertsOfSeveralTypes) {
  const std::string weight = "model.layers.0.mlp.experts.2.down_proj.weight";
  for (const char* dtype : {"F8_E5M2", "U8"}) {
    Fp8Model model;
    model.file.header()[weight]["dtype"] = dtype;
    write(model.file.bytes());
    const std::string text = refusal([&] { load(moe::io::Checkpoint::open(path_), {}); });
    EXPECT_NE(text.find(weight), std::string::npos) << text;
  }
}

TEST_F(Loading, RefusesFourBitsThatAreInfinite) {
  write(Mxfp4Model(254).file.bytes());
  const std::string text = refusal([&] { load(moe::io::Checkpoint::open(path_), {}); });
  EXPECT_NE(text.find("gate_up_proj_blocks'"), std::string::npos) << text;
  EXPECT_NE(text.find("a weight is not finite"), std::string::npos) << text;
}

TEST_F(Loading, RefusesFourBitsWithoutAScale) {
  write(Mxfp4Model(255).file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const std::string text = refusal([&] { load(checkpoint, {}); });
  EXPECT_NE(text.find("gate_up_proj_scales'"), std::string::npos) << text;
  EXPECT_NE(text.find("a scale is NaN"), std::string::npos) << text;
  write(Mxfp4Model(0).file.bytes());
  EXPECT_EQ(refusal([&] { load(moe::io::Checkpoint::open(path_), {}); }), "") << "2^-127 is one";
}

TEST_F(Loading, FloatsNeedTheNameOfAFormat) {
  moe::io::SafetensorsWriter file;
  const std::string prefix = "model.layers.0.block_sparse_moe.";
  file.add(prefix + "gate.weight", random_matrix<float>(2, 32, 1));
  for (const char* e : {"0", "1"}) {
    const std::string expert = prefix + "experts." + e;
    file.add(expert + ".w1.weight", random_matrix<float>(40, 32, 2));
    file.add(expert + ".w3.weight", random_matrix<float>(40, 32, 3));
    file.add(expert + ".w2.weight", random_matrix<float>(32, 40, 4));
  }
  write(file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  EXPECT_THROW(load(checkpoint, {}), std::invalid_argument);
  const auto format = moe::format_of("int8");
  const auto layer = load(checkpoint, {.format = moe::ExpertFormat{format, format}});
  EXPECT_LT((quantized(layer).expert(0).up - random_matrix<float>(40, 32, 3)).norm(), 0.3);
}

/// Blocks of a type with scales near 1, and the values that they stand for.
struct Blocks {
  std::string bytes;
  Matrix<float> values;

  Blocks(moe::io::GgufType type, Index rows, Index cols, std::uint64_t seed) : values(rows, cols) {
    const auto& info = moe::io::detail::gguf_type(type);
    const Index blocks = rows * cols / info.values;
    for (Index b = 0; b < blocks; ++b) {
      std::string block;
      for (Index i = 0; i < info.bytes; ++i)
        block += static_cast<char>(
            moe::detail::mix_bits(seed + static_cast<std::uint64_t>(b * info.bytes + i)));
      const auto half = [&](std::size_t at) {
        block[at] = static_cast<char>(b % 200);
        block[at + 1] = 0x24;  // About 1 / 64.
      };
      if (type == moe::io::GgufType::mxfp4) block[0] = static_cast<char>(120 + b % 4);
      if (type == moe::io::GgufType::q8_0 || type == moe::io::GgufType::q4_0) half(0);
      if (type == moe::io::GgufType::q4_k) half(0), half(2);
      if (type == moe::io::GgufType::q6_k) half(208);
      moe::io::detail::decode_block(type, reinterpret_cast<const std::byte*>(block.data()),
                                    values.data() + b * info.values);
      bytes += block;
    }
  }
};

/// A block of four experts, D = 256, F = 512, of one type, and the layer that it stands for.
struct GgufModel {
  static constexpr Index width = 256;
  static constexpr Index hidden = 512;
  GgufWriter file;
  std::vector<moe::ExpertMatrices<float>> routed{static_cast<std::size_t>(experts)};

  GgufModel(const std::string& arch, moe::io::GgufType type, bool apart = false) {
    file.entry("general.architecture", arch);
    file.entry(arch + ".embedding_length", std::uint32_t{width});
    file.entry(arch + ".expert_count", std::uint32_t{experts});
    file.entry(arch + ".expert_used_count", std::uint32_t{2});
    file.entry(arch + (arch == "llama" ? ".feed_forward_length" : ".expert_feed_forward_length"),
               std::uint32_t{hidden});
    file.floats("blk.1.ffn_gate_inp.weight", {experts, width},
                random_matrix<float>(experts, width, 1));
    std::uint64_t seed = 5;
    for (const char* part : {"gate", "up", "down"}) {
      const bool is_down = std::string(part) == "down";
      const Index rows = is_down ? width : hidden;
      const Index cols = is_down ? hidden : width;
      const Blocks blocks(type, experts * rows, cols, seed += 100000000);
      for (Index e = 0; e < experts; ++e) {
        moe::ExpertMatrices<float>& expert = routed[static_cast<std::size_t>(e)];
        Matrix<float>& m = is_down ? expert.down : part[0] == 'g' ? expert.gate : expert.up;
        m = blocks.values.middleRows(e * rows, rows);
        const std::size_t size = blocks.bytes.size() / experts;
        if (apart)
          file.tensor("blk.1.ffn_" + std::string(part) + "." + std::to_string(e) + ".weight",
                      {rows, cols}, type,
                      blocks.bytes.substr(static_cast<std::size_t>(e) * size, size));
      }
      if (!apart)
        file.tensor("blk.1.ffn_" + std::string(part) + "_exps.weight", {experts, rows, cols}, type,
                    blocks.bytes);
    }
  }
};

template <class Bank>
void expect_weights(const Bank& bank, const GgufModel& model) {
  for (Index e = 0; e < experts; ++e) {
    const moe::ExpertMatrices<float> its = bank.expert(e);
    const moe::ExpertMatrices<float>& expected = model.routed[static_cast<std::size_t>(e)];
    EXPECT_EQ(its.gate, expected.gate);
    EXPECT_EQ(its.up, expected.up);
    EXPECT_EQ(its.down, expected.down);
  }
}

TEST_F(Loading, GgufOfMixtralAndQwen3) {
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
      expect_weights(quantized(layer), model);
      const Matrix<float> x = random_matrix<float>(3, GgufModel::width, 3);
      Matrix<float> y(3, GgufModel::width);
      layer.forward(x, y);
      EXPECT_TRUE(y.allFinite());
    }
  }
}

TEST_F(Loading, GgufOfOtherGridsIsQuantisedToTheFormatThatIsNamed) {
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

TEST_F(Loading, GgufIsCalibrated) {
  const GgufModel model("llama", moe::io::GgufType::q6_k);
  write(model.file.bytes());
  const moe::io::GgufFile file(path_);
  const QuantizedLoading loading = calibrated_with(random_matrix<float>(20, GgufModel::width, 5));
  expect_calibrated(moe::io::load_gguf_block(file, moe::io::layer_config(file), 1, loading),
                    loading, model.routed);
}

TEST_F(Loading, GgufOfDeepSeekAndGptOss) {
  GgufModel deepseek("deepseek2", moe::io::GgufType::q8_0);
  deepseek.file.entry("deepseek2.expert_gating_func", std::uint32_t{2});
  deepseek.file.entry("deepseek2.expert_shared_count", std::uint32_t{1});
  deepseek.file.entry("deepseek2.expert_weights_scale", 2.5F);
  deepseek.file.entry("deepseek2.expert_weights_norm", std::uint32_t{1});
  deepseek.file.floats("blk.1.exp_probs_b.bias", {experts}, random_matrix<float>(1, experts, 2));
  for (const char* part : {"gate", "up", "down"}) {
    const bool is_down = std::string(part) == "down";
    const std::vector<Index> shape = is_down
                                         ? std::vector<Index>{GgufModel::width, GgufModel::hidden}
                                         : std::vector<Index>{GgufModel::hidden, GgufModel::width};
    deepseek.file.floats("blk.1.ffn_" + std::string(part) + "_shexp.weight", shape,
                         random_matrix<float>(shape[0], shape[1], 8));
  }
  write(deepseek.file.bytes());
  {
    const moe::io::GgufFile file(path_);
    const moe::io::LayerConfig config = moe::io::layer_config(file);
    EXPECT_EQ(config.family, moe::io::Family::deepseek_v3);
    EXPECT_EQ(config.shared_d_ff, GgufModel::hidden);
    EXPECT_EQ(config.rule.scale, 2.5);
    const auto layer = moe::io::load_gguf_block(file, config, 1);
    expect_weights(quantized(layer), deepseek);
    EXPECT_NE(layer.router().target<moe::TopKRouter<float>>()->weights().selection_bias.size(), 0);
  }
  GgufModel oss("gpt-oss", moe::io::GgufType::mxfp4);
  oss.file.floats("blk.1.ffn_gate_inp.bias", {experts}, random_matrix<float>(1, experts, 2));
  const Matrix<float> up_bias = random_matrix<float>(experts, GgufModel::hidden, 4);
  oss.file.floats("blk.1.ffn_gate_exps.bias", {experts, GgufModel::hidden},
                  random_matrix<float>(experts, GgufModel::hidden, 3));
  oss.file.floats("blk.1.ffn_up_exps.bias", {experts, GgufModel::hidden}, up_bias);
  oss.file.floats("blk.1.ffn_down_exps.bias", {experts, GgufModel::width},
                  random_matrix<float>(experts, GgufModel::width, 5));
  write(oss.file.bytes());
  const moe::io::GgufFile file(path_);
  const auto layer = moe::io::load_gguf_block(file, moe::io::layer_config(file), 1);
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::ClampedSwiGlu>>();
  ASSERT_NE(bank, nullptr);
  expect_weights(*bank, oss);
  EXPECT_EQ(bank->expert(2).up_bias.transpose(), up_bias.row(2));
}

TEST_F(Loading, GgufOfAnotherKindIsRefused) {
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

TEST_F(Loading, GgufOfSixteenBitsThatAreNoNumbersIsRefused) {
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

}  // namespace quantized_loader_test
