// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Small files that the parsers read, for fuzzing to begin with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/io/gguf.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/safetensors_writer.hpp>

#include "fuzz/parsers.hpp"
#include "support/gguf_writer.hpp"

namespace fuzz {

using moe::Index;

inline std::string some_bytes(Index count) {
  std::string bytes;
  for (Index i = 0; i < count; ++i) bytes += static_cast<char>(0x20 + i % 64);
  return bytes;
}

inline std::string safetensors_seed() {
  moe::io::SafetensorsWriter file;
  file.metadata("format", "pt");
  file.add("a", "F32", {2, 3}, some_bytes(24));
  file.add("b.c", "BF16", {4}, some_bytes(8));
  file.add("d", "I64", {}, some_bytes(8));
  file.add("e", "U8", {0}, "");
  return file.bytes();
}

/// Two experts, D = F = 32; with biases, and with a shared expert, where the architecture has them.
inline std::string gguf_seed(const std::string& arch, moe::io::GgufType type, Index layers = 2) {
  test_support::GgufWriter file;
  file.entry("general.architecture", arch);
  file.entry(arch + ".embedding_length", std::uint32_t{32});
  file.entry(arch + ".expert_count", std::uint32_t{2});
  file.entry(arch + ".expert_used_count", std::uint32_t{1});
  file.entry(arch + (arch == "llama" ? ".feed_forward_length" : ".expert_feed_forward_length"),
             std::uint32_t{32});
  const bool is_deepseek = arch == "deepseek2";
  const bool has_biases = arch == "gpt-oss";
  if (is_deepseek) {
    file.entry("deepseek2.expert_gating_func", std::uint32_t{2});
    file.entry("deepseek2.expert_shared_count", std::uint32_t{1});
    file.entry("deepseek2.expert_weights_scale", 2.5F);
    file.entry("deepseek2.expert_weights_norm", std::uint32_t{1});
    file.entry("deepseek2.expert_group_count", std::uint32_t{1});
    file.entry("deepseek2.expert_group_used_count", std::uint32_t{1});
  }
  const auto& info = moe::io::detail::gguf_type(type);
  const Index bytes = 32 * 32 / info.values * info.bytes;
  for (Index layer = 0; layer < layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer);
    const std::string prefix = block + ".ffn_";
    file.floats(prefix + "gate_inp.weight", {2, 32}, moe::Matrix<float>::Ones(2, 32));
    if (is_deepseek) file.floats(block + ".exp_probs_b.bias", {2}, moe::Matrix<float>::Ones(1, 2));
    if (has_biases) file.floats(prefix + "gate_inp.bias", {2}, moe::Matrix<float>::Ones(1, 2));
    for (const char* part : {"gate", "up", "down"}) {
      file.tensor(prefix + part + "_exps.weight", {2, 32, 32}, type, some_bytes(2 * bytes));
      if (is_deepseek)
        file.tensor(prefix + part + "_shexp.weight", {32, 32}, type, some_bytes(bytes));
      if (has_biases)
        file.floats(prefix + part + "_exps.bias", {2, 32}, moe::Matrix<float>::Ones(2, 32));
    }
  }
  return file.bytes();
}

/// Tensors of all types, of no model.
inline std::string gguf_types_seed() {
  test_support::GgufWriter file;
  file.entry("general.architecture", "llama");
  file.entry("general.alignment", std::uint32_t{32});
  file.entry("scale", 1.5F);
  using moe::io::GgufType;
  for (const GgufType type : {GgufType::f32, GgufType::f16, GgufType::bf16, GgufType::q4_0,
                              GgufType::q8_0, GgufType::q4_k, GgufType::q6_k, GgufType::mxfp4}) {
    const auto& info = moe::io::detail::gguf_type(type);
    file.tensor(std::string(info.name), {2, info.values}, type, some_bytes(2 * info.bytes));
  }
  return file.bytes();
}

inline std::string packed_seed(const char* up, const char* down, bool biases) {
  const moe::ExpertFormat format{moe::format_of(up), moe::format_of(down)};
  const moe::QuantizedExperts<moe::SwiGlu> bank(
      {.num_experts = 2, .d_model = 4, .d_ff = 4, .biases = biases}, format);
  const File place("");
  moe::io::PackedWriter writer(place.path(), {{"x", moe::io::describe(bank)}},
                               {{"t", "U8", {4}, some_bytes(4)}});
  writer.write_bank("x", bank);
  writer.finish();
  std::ifstream stream(place.path(), std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline std::string mixtral_seed() {
  moe::io::SafetensorsWriter file;
  const std::string prefix = "model.layers.0.block_sparse_moe.";
  file.add(prefix + "gate.weight", moe::Matrix<float>::Ones(2, 4));
  for (const char* e : {"0", "1"})
    for (const char* part : {"w1", "w2", "w3"})
      file.add(prefix + "experts." + e + "." + part + ".weight", "BF16", {4, 4}, some_bytes(32));
  file.metadata("config", R"({"model_type": "mixtral", "hidden_size": 4, "intermediate_size": 4,
    "num_local_experts": 2, "num_experts_per_tok": 1})");
  return file.bytes();
}

inline std::string deepseek_seed(const char* type) {
  moe::io::SafetensorsWriter file;
  const std::string prefix = "model.layers.0.mlp.";
  file.add(prefix + "gate.weight", moe::Matrix<float>::Ones(2, 4));
  file.add_vector(prefix + "gate.e_score_correction_bias", moe::Matrix<float>::Ones(2, 1));
  for (const char* expert : {"experts.0.", "experts.1.", "shared_experts."}) {
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
      const std::string name = prefix + expert + part + ".weight";
      file.add(name, type, {4, 4}, some_bytes(16));
      file.add(name + "_scale_inv", moe::Matrix<float>::Ones(1, 1));
    }
  }
  file.metadata("config", R"({"model_type": "deepseek_v3", "hidden_size": 4,
    "moe_intermediate_size": 4, "n_routed_experts": 2, "num_experts_per_tok": 1,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc"})");
  return file.bytes();
}

inline std::string gpt_oss_seed() {
  moe::io::SafetensorsWriter file;
  const std::string prefix = "model.layers.0.mlp.";
  file.add(prefix + "router.weight", moe::Matrix<float>::Ones(2, 32));
  file.add_vector(prefix + "router.bias", moe::Matrix<float>::Ones(2, 1));
  const auto add = [&](const std::string& name, Index rows) {
    file.add(name + "_blocks", "U8", {2, rows, 1, 16}, some_bytes(2 * rows * 16));
    file.add(name + "_scales", "U8", {2, rows, 1}, some_bytes(2 * rows));
    file.add(name + "_bias", moe::Matrix<float>::Ones(2, rows));
  };
  add(prefix + "experts.gate_up_proj", 64);
  add(prefix + "experts.down_proj", 32);
  file.metadata("config", R"({"model_type": "gpt_oss", "hidden_size": 32,
    "intermediate_size": 32, "num_local_experts": 2, "num_experts_per_tok": 1})");
  return file.bytes();
}

/// Throws  std::invalid_argument if there is no such parser.
inline std::vector<std::string> seeds_of(std::string_view parser) {
  using moe::io::GgufType;
  if (parser == "safetensors") return {safetensors_seed()};
  if (parser == "index")
    return {R"({"metadata": {"total_size": 2}, "weight_map": {"a": "a.safetensors"}})"};
  if (parser == "gguf")
    return {gguf_seed("llama", GgufType::q8_0), gguf_seed("qwen3moe", GgufType::q4_0),
            gguf_seed("deepseek2", GgufType::q4_0, 1), gguf_seed("gpt-oss", GgufType::mxfp4, 1)};
  if (parser == "packed")
    return {packed_seed("int8", "int4-g32", false), packed_seed("mxfp4", "fp8", true)};
  if (parser == "checkpoint")
    return {mixtral_seed(), deepseek_seed("F8_E4M3"), deepseek_seed("F8_E5M2"), gpt_oss_seed()};
  throw std::invalid_argument("there is no parser of that name");
}

/// More to begin with, which need not be read to the end.
inline std::vector<std::string> other_seeds_of(std::string_view parser) {
  using moe::io::GgufType;
  if (parser == "gguf")
    return {gguf_types_seed(), gguf_seed("deepseek2", GgufType::q8_0, 1),
            gguf_seed("llama", GgufType::bf16, 1)};
  return {};
}

}  // namespace fuzz
