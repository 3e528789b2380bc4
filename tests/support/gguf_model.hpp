// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// MoE blocks in GGUF files, of random codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/core/types.hpp>
#include <moe/experts/expert_source.hpp>
#include <moe/io/gguf.hpp>

#include "support/gguf_writer.hpp"
#include "support/layers.hpp"

namespace test_support {

using moe::Index;
using moe::Matrix;

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
      if (type == moe::io::GgufType::f16 || type == moe::io::GgufType::bf16)
        block[1] = static_cast<char>(block[1] & 0xbf);  // Below 2.
      if (type == moe::io::GgufType::f32) {
        const float value =
            static_cast<float>(moe::detail::uniform(seed, static_cast<std::uint64_t>(b))) - 0.5F;
        std::memcpy(block.data(), &value, sizeof(value));
      }
      moe::io::detail::decode_block(type, reinterpret_cast<const std::byte*>(block.data()),
                                    values.data() + b * info.values);
      bytes += block;
    }
  }
};

/// Layer 1 of a model, four experts, D = 256, F = 512, and the weights that it stands for.
struct GgufModel {
  static constexpr Index experts = 4;
  static constexpr Index width = 256;
  static constexpr Index hidden = 512;
  /// The type of an expert's part, "gate", "up" or "down".
  using TypeOf = std::function<moe::io::GgufType(const std::string& part, Index e)>;

  GgufWriter file;
  std::vector<moe::ExpertMatrices<float>> routed{static_cast<std::size_t>(experts)};
  moe::ExpertMatrices<float> shared;

  /// Experts in tensors of their own, or, where they are of one type, in one for each part.
  GgufModel(const std::string& arch, const TypeOf& type_of, bool apart) {
    file.entry("general.architecture", arch);
    file.entry(arch + ".embedding_length", std::uint32_t{width});
    file.entry(arch + ".expert_count", std::uint32_t{experts});
    file.entry(arch + ".expert_used_count", std::uint32_t{2});
    file.entry(arch + (arch == "llama" ? ".feed_forward_length" : ".expert_feed_forward_length"),
               std::uint32_t{hidden});
    file.floats("blk.1.ffn_gate_inp.weight", {experts, width},
                random_matrix<float>(experts, width, 1));
    for (const char* part : {"gate", "up", "down"}) {
      const std::vector<Index> shape = shape_of(part);
      const std::string name = "blk.1.ffn_" + std::string(part);
      std::string all;
      for (Index e = 0; e < experts; ++e) {
        const moe::io::GgufType type = type_of(part, e);
        const Blocks blocks(type, shape[0], shape[1], seed_ += 100000000);
        matrix_of(routed[static_cast<std::size_t>(e)], part) = blocks.values;
        if (apart)
          file.tensor(name + "." + std::to_string(e) + ".weight", shape, type, blocks.bytes);
        all += blocks.bytes;
      }
      if (!apart)
        file.tensor(name + "_exps.weight", {experts, shape[0], shape[1]}, type_of(part, 0), all);
    }
  }
  GgufModel(const std::string& arch, moe::io::GgufType type, bool apart = false)
      : GgufModel(
            arch, [type](const std::string& /*part*/, Index /*e*/) { return type; }, apart) {}

  /// The biases of gpt-oss.
  void add_biases() {
    file.floats("blk.1.ffn_gate_inp.bias", {experts}, random_matrix<float>(1, experts, 2));
    std::uint64_t seed = 2;
    for (const char* part : {"gate", "up", "down"}) {
      const Index size = shape_of(part)[0];
      const Matrix<float> all = random_matrix<float>(experts, size, ++seed);
      file.floats("blk.1.ffn_" + std::string(part) + "_exps.bias", {experts, size}, all);
      for (Index e = 0; e < experts; ++e) {
        moe::ExpertMatrices<float>& expert = routed[static_cast<std::size_t>(e)];
        Matrix<float>& bias = part[0] == 'd'   ? expert.down_bias
                              : part[0] == 'g' ? expert.gate_bias
                                               : expert.up_bias;
        bias = all.row(e).transpose();
      }
    }
  }

  /// DeepSeek-V3's router, and a shared expert.
  static GgufModel deepseek(moe::io::GgufType routed, moe::io::GgufType shared) {
    GgufModel model("deepseek2", routed);
    model.file.entry("deepseek2.expert_gating_func", std::uint32_t{2});
    model.file.entry("deepseek2.expert_shared_count", std::uint32_t{1});
    model.file.entry("deepseek2.expert_weights_scale", 2.5F);
    model.file.entry("deepseek2.expert_weights_norm", std::uint32_t{1});
    model.file.floats("blk.1.exp_probs_b.bias", {experts}, random_matrix<float>(1, experts, 2));
    for (const char* part : {"gate", "up", "down"}) {
      const std::vector<Index> shape = shape_of(part);
      const Blocks blocks(shared, shape[0], shape[1], model.seed_ += 100000000);
      matrix_of(model.shared, part) = blocks.values;
      model.file.tensor("blk.1.ffn_" + std::string(part) + "_shexp.weight", shape, shared,
                        blocks.bytes);
    }
    return model;
  }

 private:
  static std::vector<Index> shape_of(const std::string& part) {
    return part == "down" ? std::vector<Index>{width, hidden} : std::vector<Index>{hidden, width};
  }
  static Matrix<float>& matrix_of(moe::ExpertMatrices<float>& expert, const std::string& part) {
    return part == "down" ? expert.down : part == "gate" ? expert.gate : expert.up;
  }

  std::uint64_t seed_ = 5;
};

}  // namespace test_support
