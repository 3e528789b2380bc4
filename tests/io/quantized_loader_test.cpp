// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints in eight and four bits, made here, against the weights that their codes say.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/quantized_loader.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/loading.hpp"
#include "support/temporary_file.hpp"

namespace quantized_loader_test {

using moe::Index;
using moe::Matrix;
using moe::io::CheckpointLayer;
using moe::io::QuantizedLoading;
using test_support::calibrated_with;
using test_support::expect_calibrated;
using test_support::expect_same;
using test_support::expect_weights;
using test_support::quantized;
using test_support::random_matrix;
using test_support::refusal;

class Loading : public test_support::TemporaryFile {};

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
  expect_weights(bank, model.routed);
  const auto* const shared = layer.shared().bank()->target<moe::QuantizedExperts<moe::SwiGlu>>();
  ASSERT_NE(shared, nullptr) << "as it is stored, too";
  EXPECT_EQ(shared->format(0).up, moe::format_of("fp8"));
  const auto* const exact = floats.shared().bank()->target<moe::SwiGluExperts<float>>();
  ASSERT_NE(exact, nullptr);
  EXPECT_EQ(shared->expert(0).down, exact->expert(0).down);
  expect_same(floats, layer, true);
  // Quantised anew, to another format.
  const auto four =
      load(checkpoint,
           {.format = moe::ExpertFormat{moe::format_of("int8-g32"), moe::format_of("int4-g32")}});
  const Matrix<float> error = quantized(four).expert(1).up - model.routed[1].up;
  EXPECT_LT(error.norm(), 0.02 * model.routed[1].up.norm());
  EXPECT_GT(error.norm(), 0);
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
  // This family has one stack, whatever it is called.
  expect_same(layer, moe::io::packed_layer(checkpoint, 0, write_packed("layers.0", bank),
                                           moe::ProductKind::integer, moe::io::Stack::decoder));
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

TEST_F(Loading, EightBitsOfSeveralTypes) {
  const std::string prefix = "model.layers.0.mlp.experts.2.";
  const auto with_type = [&](const std::string& part, const char* dtype) {
    Fp8Model model;
    model.file.header()[prefix + part]["dtype"] = dtype;
    write(model.file.bytes());
    return moe::io::Checkpoint::open(path_);
  };
  // Every expert has its own, but gate and up have one together.
  const auto checkpoint = with_type("down_proj.weight", "F8_E5M2");
  const auto layer = load(checkpoint, {.product = moe::ProductKind::widened});
  EXPECT_EQ(quantized(layer).format(1).down, moe::format_of("fp8"));
  EXPECT_EQ(quantized(layer).format(2).down, moe::format_of("fp8-e5m2"));
  expect_same(checkpoint.layer<float>(0), layer, true);
  const auto error = [&](const std::string& part, const char* dtype) {
    return refusal([&] { load(with_type(part, dtype), {}); });
  };
  EXPECT_NE(error("gate_proj.weight", "F8_E5M2").find(prefix + "gate_proj"), std::string::npos);
  EXPECT_NE(error("down_proj.weight", "U8").find(prefix + "down_proj"), std::string::npos);
}

TEST_F(Loading, PartsInTheirFormatKeepTheirCodes) {
  const Fp8Model model;
  write(model.file.bytes());
  const auto layer =
      load(moe::io::Checkpoint::open(path_),
           {.format = moe::ExpertFormat{moe::format_of("fp8"), moe::format_of("int8-g32")}});
  for (Index e = 0; e < experts; ++e) {
    const auto its = quantized(layer).expert(e);
    const auto& exact = model.routed[static_cast<std::size_t>(e)];
    EXPECT_EQ(its.gate, exact.gate);
    EXPECT_EQ(its.up, exact.up);
    EXPECT_NE(its.down, exact.down);
    EXPECT_LT((its.down - exact.down).norm(), 0.01 * exact.down.norm());
  }
}

TEST_F(Loading, ErrorsNameTheByte) {
  const Fp8Model model;
  write(model.file.bytes());
  const std::string weight = "model.layers.0.mlp.experts.1.down_proj.weight";
  const auto tensors = moe::io::Tensors::open(path_);
  const auto offset_of = [&](const std::string& name) { return tensors.tensor(name).offset; };
  const auto error_with = [&](std::uint64_t at, const std::string& bytes) {
    std::string all = model.file.bytes();
    all.replace(static_cast<std::size_t>(at), bytes.size(), bytes);
    write(all);
    return test_support::format_error([&] { load(moe::io::Checkpoint::open(path_), {}); });
  };
  const std::uint64_t code = offset_of(weight) + 3 * d_ff + 7;
  for (const char* nan : {"\x7f", "\xff"}) {
    const auto error = error_with(code, nan);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->tensor(), weight);
    EXPECT_EQ(error->offset(), code);
  }
  // The scale of the second block of inputs and the first one of outputs: NaN, and zero.
  const std::uint64_t scale = offset_of(weight + "_scale_inv") + 4;
  const auto nan = error_with(scale, std::string("\0\0\xc0\x7f", 4));
  ASSERT_TRUE(nan);
  EXPECT_EQ(nan->tensor(), weight + "_scale_inv");
  EXPECT_EQ(nan->offset(), scale);
  const auto zero = error_with(scale, std::string(4, '\0'));
  ASSERT_TRUE(zero);
  EXPECT_EQ(zero->tensor(), weight);
  // Threads read outputs: any code of that block.
  const std::uint64_t index = zero->offset() - offset_of(weight);
  EXPECT_LT(index / d_ff, 128);
  EXPECT_GE(index % d_ff, 128);
}

TEST_F(Loading, EightBitsNeedTheirScales) {
  const std::string scales = "model.layers.0.mlp.experts.1.down_proj.weight_scale_inv";
  Fp8Model without;
  without.file.header()["others"] = without.file.header()[scales];
  without.file.header().erase(scales);
  write(without.file.bytes());
  const auto error_of_file = [&] {
    return test_support::format_error([&] { load(moe::io::Checkpoint::open(path_), {}); });
  };
  const auto missing = error_of_file();
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->tensor(), scales);
  Fp8Model other;
  other.file.header()[scales]["shape"] = {1, 4};
  write(other.file.bytes());
  const auto shape = error_of_file();
  ASSERT_TRUE(shape);
  EXPECT_EQ(shape->tensor(), scales);
  EXPECT_EQ(shape->offset(), moe::io::Tensors::open(path_).tensor(scales).offset);
}

TEST_F(Loading, RefusesFourBitsThatAreInfinite) {
  write(Mxfp4Model(254).file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const auto error = test_support::format_error([&] { load(checkpoint, {}); });
  ASSERT_TRUE(error);
  const std::string blocks = "model.layers.0.mlp.experts.gate_up_proj_blocks";
  EXPECT_EQ(error->tensor(), blocks);
  const std::uint64_t block = checkpoint.tensors().tensor(blocks).offset + (5 * 2 + 1) * 16;
  EXPECT_GE(error->offset(), block);
  EXPECT_LT(error->offset(), block + 16);
  EXPECT_NE(std::string(error->what()).find("a weight is not finite"), std::string::npos);
}

TEST_F(Loading, FourBitsNeedBlocksAndScalesThatBelongTogether) {
  const std::string blocks = "model.layers.0.mlp.experts.down_proj_blocks";
  const std::string scales = "model.layers.0.mlp.experts.down_proj_scales";
  const auto error_of = [&](Mxfp4Model& model) {
    write(model.file.bytes());
    return test_support::format_error([&] { load(moe::io::Checkpoint::open(path_), {}); });
  };
  const auto offset_of = [&](const std::string& tensor) {
    return moe::io::Tensors::open(path_).tensor(tensor).offset;
  };
  Mxfp4Model without;
  without.file.header()["others"] = without.file.header()[scales];
  without.file.header().erase(scales);
  const auto missing = error_of(without);
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->tensor(), scales);
  // As many bytes in another shape.
  for (const auto& [tensor, shape] :
       {std::pair{blocks, std::vector<Index>{experts, Mxfp4Model::width, 6, 8}},
        std::pair{scales, std::vector<Index>{experts, 3, Mxfp4Model::width}}}) {
    Mxfp4Model other;
    other.file.header()[tensor]["shape"] = shape;
    const auto error = error_of(other);
    ASSERT_TRUE(error) << tensor;
    EXPECT_EQ(error->tensor(), tensor);
    EXPECT_EQ(error->offset(), offset_of(tensor));
  }
  for (const std::string& tensor : {blocks, scales}) {
    Mxfp4Model other;
    other.file.header()[tensor]["dtype"] = "F8_E4M3";
    const auto error = error_of(other);
    ASSERT_TRUE(error) << tensor;
    EXPECT_EQ(error->tensor(), tensor);
    EXPECT_EQ(error->offset(), offset_of(tensor));
  }
}

/// All bytes of two codes with all scales whose products are finite, as OCP's specification of
/// microscaling formats defines them.
TEST_F(Loading, FourBitsOfGptOssHaveTheValuesOfTheirFormat) {
  constexpr float magnitudes[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  const auto value_of = [&](int code, int scale) {
    return std::ldexp(code < 8 ? magnitudes[code] : -magnitudes[code - 8], scale - 127);
  };
  constexpr Index rows = 16;  // of 256 codes: 16 groups' bytes, each in two nibbles
  for (int scale = 0; scale < 253; ++scale) {
    moe::io::SafetensorsWriter file;
    std::string blocks;
    for (int byte = 0; byte < 256; ++byte) blocks += static_cast<char>(byte);
    file.add("a_blocks", "U8", {1, rows, 1, 16}, blocks);
    file.add("a_scales", "U8", {1, rows, 1}, std::string(rows, static_cast<char>(scale)));
    write(file.bytes());
    const auto tensors = moe::io::Tensors::open(path_);
    const Matrix<float> values =
        moe::io::detail::Mxfp4Matrices(tensors, "a", 1, rows, 32).widened<float>(0);
    for (int byte = 0; byte < 256; ++byte) {  // The low nibble comes first.
      const Index at = 2 * (byte % 16);
      ASSERT_EQ(values(byte / 16, at), value_of(byte % 16, scale)) << byte << ", scale " << scale;
      ASSERT_EQ(values(byte / 16, at + 1), value_of(byte / 16, scale))
          << byte << ", scale " << scale;
    }
  }
}

TEST_F(Loading, RefusesFourBitsWithoutAScale) {
  write(Mxfp4Model(255).file.bytes());
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const std::string text = refusal([&] { load(checkpoint, {}); });
  EXPECT_NE(text.find("gate_up_proj_scales'"), std::string::npos) << text;
  EXPECT_NE(text.find("a scale is NaN"), std::string::npos) << text;
  const auto error = test_support::format_error([&] { load(checkpoint, {}); });
  ASSERT_TRUE(error);
  const std::string scales = "model.layers.0.mlp.experts.gate_up_proj_scales";
  EXPECT_EQ(error->tensor(), scales);
  EXPECT_EQ(error->offset(), checkpoint.tensors().tensor(scales).offset + 5 * 2 + 1);
  write(Mxfp4Model(0).file.bytes());
  EXPECT_EQ(refusal([&] { load(moe::io::Checkpoint::open(path_), {}); }), "") << "2^-127 is one";
}

TEST_F(Loading, RefusesBiasesThatAreNoNumbers) {
  const Mxfp4Model model;
  std::string all = model.file.bytes();
  write(all);
  const std::string biases = "model.layers.0.mlp.experts.down_proj_bias";
  const std::uint64_t at =
      moe::io::Tensors::open(path_).tensor(biases).offset + 4 * (2 * Mxfp4Model::width + 5);
  all.replace(static_cast<std::size_t>(at), 4, std::string("\0\0\x80\x7f", 4));
  write(all);
  const auto checkpoint = moe::io::Checkpoint::open(path_);
  const moe::WeightFormat four = moe::format_of("mxfp4");
  for (const auto& format : {std::optional<moe::ExpertFormat>{},
                             std::optional(moe::ExpertFormat{four, moe::format_of("int8-g32")})}) {
    const auto error = test_support::format_error([&] { load(checkpoint, {.format = format}); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->tensor(), biases);
    EXPECT_EQ(error->offset(), at);
  }
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

}  // namespace quantized_loader_test
