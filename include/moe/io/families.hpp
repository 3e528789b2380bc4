// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The model families whose layers can be loaded, and how their checkpoints name tensors. (optional:
// needs nlohmann_json)
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/tensors.hpp"

namespace moe::inline MOE_ABI::io {

/// Model families whose layers can be loaded.
enum class Family {
  mixtral,
  qwen2_moe,
  qwen3_moe,
  olmoe,
  dbrx,
  deepseek_v2,
  deepseek_v3,
  glm4_moe,
  phimoe,
  llama4,
  gpt_oss,
  jetmoe,
  granitemoe,
  ernie4_5_moe,
  switch_transformers,
  nllb_moe,
};

/// Which half of an encoder-decoder model a layer is in; others have a decoder only.
enum class Stack { encoder, decoder };

namespace detail {

/// How the experts' matrices are stored.
enum class ExpertLayout {
  gated,         // experts.N.<gate|up|down>.weight, each [out, in]
  plain,         // experts.expert_N.<up|down>.weight, each [out, in]
  plain_bias,    // the same with .bias
  stacked,       // DBRX: <gate|up|down> of [E F, D], where down is [in, out]
  fused_in_out,  // <up> [E, D, 2 F], <down> [E, F, D]
  fused_biased,  // the same, interleaved, with <up>_bias and <down>_bias: gpt-oss
  fused_out_in,  // <up>.weight [E, 2 F, D], <down>.weight [E, D, F]
};

struct FamilyTraits {
  Family family;
  std::string_view model_type;
  std::string_view block;  // of layer #
  std::string_view router;
  ExpertLayout layout;
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  std::string_view selection_bias = {};
  std::string_view shared = {};
  Index default_top_k = 2;  // where nothing but the names is known
};

inline constexpr std::array<FamilyTraits, 16> families{{
    {Family::mixtral,
     "mixtral",
     "model.layers.#.block_sparse_moe.",
     "gate.weight",
     ExpertLayout::gated,
     "w1",
     "w3",
     "w2",
     {},
     {},
     2},
    {Family::qwen2_moe,
     "qwen2_moe",
     "model.layers.#.mlp.",
     "gate.weight",
     ExpertLayout::gated,
     "gate_proj",
     "up_proj",
     "down_proj",
     {},
     "shared_expert.",
     4},
    {Family::qwen3_moe,
     "qwen3_moe",
     "model.layers.#.mlp.",
     "gate.weight",
     ExpertLayout::gated,
     "gate_proj",
     "up_proj",
     "down_proj",
     {},
     {},
     8},
    {Family::olmoe,
     "olmoe",
     "model.layers.#.mlp.",
     "gate.weight",
     ExpertLayout::gated,
     "gate_proj",
     "up_proj",
     "down_proj",
     {},
     {},
     8},
    {Family::dbrx,
     "dbrx",
     "transformer.blocks.#.ffn.",
     "router.layer.weight",
     ExpertLayout::stacked,
     "experts.mlp.w1",
     "experts.mlp.v1",
     "experts.mlp.w2",
     {},
     {},
     4},
    {Family::deepseek_v2,
     "deepseek_v2",
     "model.layers.#.mlp.",
     "gate.weight",
     ExpertLayout::gated,
     "gate_proj",
     "up_proj",
     "down_proj",
     {},
     "shared_experts.",
     6},
    {Family::deepseek_v3, "deepseek_v3", "model.layers.#.mlp.", "gate.weight", ExpertLayout::gated,
     "gate_proj", "up_proj", "down_proj", "gate.e_score_correction_bias", "shared_experts.", 8},
    {Family::glm4_moe, "glm4_moe", "model.layers.#.mlp.", "gate.weight", ExpertLayout::gated,
     "gate_proj", "up_proj", "down_proj", "gate.e_score_correction_bias", "shared_experts.", 8},
    {Family::phimoe,
     "phimoe",
     "model.layers.#.block_sparse_moe.",
     "gate.weight",
     ExpertLayout::gated,
     "w1",
     "w3",
     "w2",
     {},
     {},
     2},
    {Family::llama4,
     "llama4",
     "language_model.model.layers.#.feed_forward.",
     "router.weight",
     ExpertLayout::fused_in_out,
     {},
     "experts.gate_up_proj",
     "experts.down_proj",
     {},
     "shared_expert.",
     1},
    {Family::gpt_oss,
     "gpt_oss",
     "model.layers.#.mlp.",
     "router.weight",
     ExpertLayout::fused_biased,
     {},
     "experts.gate_up_proj",
     "experts.down_proj",
     {},
     {},
     4},
    {Family::jetmoe,
     "jetmoe",
     "model.layers.#.mlp.",
     "router.layer.weight",
     ExpertLayout::fused_out_in,
     {},
     "input_linear",
     "output_linear",
     {},
     {},
     2},
    {Family::granitemoe,
     "granitemoe",
     "model.layers.#.block_sparse_moe.",
     "router.layer.weight",
     ExpertLayout::fused_out_in,
     {},
     "input_linear",
     "output_linear",
     {},
     "shared_mlp.",
     8},
    {Family::ernie4_5_moe, "ernie4_5_moe", "model.layers.#.mlp.", "gate.weight",
     ExpertLayout::gated, "gate_proj", "up_proj", "down_proj",
     "moe_statics.e_score_correction_bias", "shared_experts.", 6},
    {Family::switch_transformers,
     "switch_transformers",
     "encoder.block.#.layer.1.mlp.",
     "router.classifier.weight",
     ExpertLayout::plain,
     {},
     "wi",
     "wo",
     {},
     {},
     1},
    {Family::nllb_moe,
     "nllb-moe",
     "model.encoder.layers.#.ffn.",
     "router.classifier.weight",
     ExpertLayout::plain_bias,
     {},
     "fc1",
     "fc2",
     {},
     {},
     2},
}};

inline const FamilyTraits& traits_of(Family family) noexcept {
  return families[static_cast<std::size_t>(family)];
}

/// The prefix of a layer's block; Llama-4's text-only checkpoints leave out "language_model.".
inline std::string block_prefix(Family family, Index layer, Stack stack, const Tensors& tensors) {
  std::string prefix(traits_of(family).block);
  const auto replace = [&](std::string_view from, const std::string& to) {
    const std::size_t at = prefix.find(from);
    if (at != std::string::npos) prefix.replace(at, from.size(), to);
  };
  replace("#", std::to_string(layer));
  if (stack == Stack::decoder) {
    replace("encoder", "decoder");
    if (family == Family::switch_transformers) replace("layer.1.", "layer.2.");
  }
  const std::string_view nested = "language_model.";
  if (prefix.starts_with(nested) &&
      !tensors.contains(prefix + std::string(traits_of(family).router)))
    prefix.erase(0, nested.size());
  return prefix;
}

/// The prefix of the block whose router has this name, if the family has such names.
inline std::optional<std::string> block_of_router(const FamilyTraits& traits,
                                                  const std::string& name, const Tensors& tensors) {
  if (!name.ends_with(traits.router)) return std::nullopt;
  const std::string prefix = name.substr(0, name.size() - traits.router.size());
  // The layer's number: the first run of digits that stands between two dots.
  std::size_t at = prefix.find_first_of("0123456789");
  if (at == std::string::npos) return std::nullopt;
  Index layer = 0;
  for (; at < prefix.size() && prefix[at] >= '0' && prefix[at] <= '9' && layer < 1'000'000; ++at)
    layer = 10 * layer + (prefix[at] - '0');
  for (const Stack stack : {Stack::encoder, Stack::decoder})
    if (block_prefix(traits.family, layer, stack, tensors) == prefix) return prefix;
  return std::nullopt;
}

/// True if the block at `prefix` has what only this family has.
inline bool matches(const FamilyTraits& traits, const Tensors& tensors, const std::string& prefix) {
  const auto has = [&](std::string_view name) {
    return tensors.contains(moe::detail::text_of(prefix, name));
  };
  const bool has_shared = has("shared_experts.up_proj.weight");
  switch (traits.layout) {
    case ExpertLayout::plain:
    case ExpertLayout::plain_bias:
      return has(moe::detail::text_of("experts.expert_0.", traits.up, ".weight"));
    case ExpertLayout::stacked:
      return has(traits.gate);
    case ExpertLayout::fused_in_out:
      return has(traits.up) && !has(moe::detail::text_of(traits.up, "_bias"));
    case ExpertLayout::fused_biased:
      return (has(traits.up) || has(moe::detail::text_of(traits.up, "_blocks"))) &&
             has(moe::detail::text_of(traits.up, "_bias"));
    case ExpertLayout::fused_out_in:
      return has(moe::detail::text_of(traits.up, ".weight"));
    case ExpertLayout::gated:
      break;
  }
  if (!has(moe::detail::text_of("experts.0.", traits.gate, ".weight"))) return false;
  // The attention beside the block tells the rest apart.
  const std::string layer =
      prefix.substr(0, prefix.find(traits.block.substr(traits.block.find('#') + 1)) + 1);
  const auto beside = [&](std::string_view name) {
    return tensors.contains(moe::detail::text_of(layer, name));
  };
  const auto rows = [&](std::string_view name) {
    return tensors.dimension(moe::detail::text_of(layer, name), 0);
  };
  switch (traits.family) {
    case Family::mixtral:
      return !beside("input_layernorm.bias");
    case Family::phimoe:
      return beside("input_layernorm.bias");
    case Family::qwen2_moe:
      return has("shared_expert_gate.weight");
    case Family::ernie4_5_moe:
      return has(traits.selection_bias);
    case Family::deepseek_v3:
      return has(traits.selection_bias) && !beside("self_attn.q_proj.weight");
    case Family::glm4_moe:
      return has(traits.selection_bias) && beside("self_attn.q_proj.weight");
    case Family::deepseek_v2:
      return has_shared && !has("gate.e_score_correction_bias") &&
             !has("moe_statics.e_score_correction_bias");
    default:
      break;
  }
  // Qwen3 and OLMoE differ in what the norm of the queries spans: a head, or all of them.
  if (has_shared || has("shared_expert_gate.weight") || has("gate.e_score_correction_bias") ||
      has("moe_statics.e_score_correction_bias"))
    return false;
  if (!beside("self_attn.q_norm.weight") || !beside("self_attn.q_proj.weight"))
    return traits.family == Family::qwen3_moe;
  const bool spans_all = rows("self_attn.q_norm.weight") == rows("self_attn.q_proj.weight");
  return (traits.family == Family::olmoe) == spans_all;
}

}  // namespace detail

/// A block that was found by its names.
struct FoundBlock {
  Family family;
  std::string prefix;
};

/// The first block of the checkpoint whose tensors have the names of a known family, if there is
/// one. Mixtral and Phi-3.5-MoE, DeepSeek-V3 and GLM-4.5, and Qwen3-MoE and OLMoE are told apart by
/// the tensors of the attention and norms beside the block.
inline std::optional<FoundBlock> find_block(const Tensors& tensors) {
  for (const std::string& name : tensors.names())
    for (const detail::FamilyTraits& traits : detail::families)
      if (const auto prefix = detail::block_of_router(traits, name, tensors))
        if (detail::matches(traits, tensors, *prefix)) return FoundBlock{traits.family, *prefix};
  return std::nullopt;
}

}  // namespace moe::inline MOE_ABI::io
