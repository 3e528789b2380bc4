// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// LayerConfig: sizes and conventions of a model's MoE layers, from its config.json. (optional:
// needs nlohmann_json)
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/io/config_reader.hpp"
#include "moe/io/families.hpp"
#include "moe/io/tensors.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/presets.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI::io {

/// Activations that checkpoints name.
enum class CheckpointActivation { silu, gelu, gelu_tanh, relu, clamped_swiglu };

/// Sizes, rule and conventions of a model's MoE layers. Filled by `layer_config`; a caller may
/// change the rule (another variant of the family) or the capacity before loading.
struct LayerConfig {
  Family family = Family::mixtral;
  Index d_model = 0;
  Index d_ff = 0;
  Index num_experts = 0;
  Index top_k = 0;
  Index shared_d_ff = 0;  ///< width of all shared experts together, stored as one; 0 for none
  RoutingRule rule = {};  ///< of all families but phimoe
  double sparse_mixer_jitter = 0.01;  ///< of phimoe
  double input_jitter = 0;            ///< of phimoe, in training
  CheckpointActivation activation = CheckpointActivation::silu;
  ClampedSwiGlu clamp = {};  ///< of gpt_oss
  bool router_bias = false;  ///< of switch_transformers and nllb_moe; gpt_oss has one always
  Capacity capacity = {};    ///< Switch counts within a sequence: set group_tokens to its length
};

namespace detail {

inline CheckpointActivation activation_of(const ConfigReader& config, const std::string& key,
                                          const std::string& name) {
  if (name == "silu" || name == "swish") return CheckpointActivation::silu;
  if (name == "gelu") return CheckpointActivation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return CheckpointActivation::gelu_tanh;
  if (name == "relu") return CheckpointActivation::relu;
  config.fail(moe::detail::text_of(key, " '", name, "' is not supported"));
}

inline void require_value(const ConfigReader& config, const char* key, const std::string& only) {
  if (const auto value = config.get<std::string>(key, only); value != only)
    config.fail(moe::detail::text_of("'", key, "' is '", value, "', which is not supported"));
}

/// Rows of an expert that a configuration may ask for.
inline constexpr Index most_rows = Index{1} << 31;

/// Shared experts of the families that store `count` of them as one.
inline Index shared_width(const ConfigReader& config, const char* key, Index otherwise,
                          Index width) {
  if (config.is_null(key)) return 0;
  const auto count = config.get<Index>(key, otherwise);
  if (config.has(key)) config.check(count >= 0 && count <= 1024, key);
  return count * width;
}

/// A number from `least` to `most`, or `otherwise` where the field is absent.
template <class Value>
Value number_within(const ConfigReader& config, const char* key, Value otherwise, Value least,
                    Value most) {
  const auto value = config.get<Value>(key, otherwise);
  if (config.has(key)) config.check(value >= least && value <= most, key);
  return value;
}

/// Fails where a field that is false by default is true.
inline void require_absent(const ConfigReader& config, const char* key) {
  if (config.get<bool>(key, false))
    config.fail(moe::detail::text_of("'", key, "' is true, which is not supported"));
}

/// Noise multiplies by 1 +- this much.
inline double jitter_within(const ConfigReader& config, const char* key, double otherwise) {
  const auto value = config.get<double>(key, otherwise);
  if (config.has(key)) config.check(value >= 0 && value < 1, key);
  return value;
}

inline void read_deepseek(const ConfigReader& config, LayerConfig& layer) {
  layer.d_ff = config.positive("moe_intermediate_size");
  layer.num_experts = config.positive("n_routed_experts");
  // Absent fields have transformers' defaults, which differ between the families.
  if (layer.family == Family::deepseek_v2) {
    layer.shared_d_ff = shared_width(config, "n_shared_experts", 2, layer.d_ff);
    require_value(config, "scoring_func", "softmax");
    const auto method = config.get<std::string>("topk_method", "greedy");
    if (method != "greedy" && method != "group_limited_greedy")
      config.fail(moe::detail::text_of("'topk_method' is '", method, "', which is not supported"));
    presets::GroupedSoftmax options{.norm_topk_prob = config.get<bool>("norm_topk_prob", false),
                                    .scale = config.get<double>("routed_scaling_factor", 1.0)};
    if (method == "group_limited_greedy") {
      options.groups = config.positive("n_group");
      options.groups_kept = config.positive("topk_group");
    }
    layer.rule = presets::deepseek_v2(options);
    return;
  }
  const bool is_deepseek = layer.family == Family::deepseek_v3;
  layer.shared_d_ff = shared_width(config, "n_shared_experts", 1, layer.d_ff);
  const presets::BiasedSigmoid options{
      .groups = config.get<Index>("n_group", is_deepseek ? 8 : 1),
      .groups_kept = config.get<Index>("topk_group", is_deepseek ? 4 : 1),
      .norm_topk_prob = config.get<bool>("norm_topk_prob", true),
      .scale = config.get<double>("routed_scaling_factor", is_deepseek ? 2.5 : 1.0)};
  layer.rule = is_deepseek ? presets::deepseek_v3(options) : presets::glm4_moe(options);
  require_value(config, "scoring_func", "sigmoid");
  require_value(config, "topk_method", "noaux_tc");
}

inline void read_dbrx(const ConfigReader& config, LayerConfig& layer) {
  const ConfigReader ffn(config["ffn_config"], config.source());
  layer.d_ff = ffn.positive("ffn_hidden_size");
  layer.num_experts = ffn.positive("moe_num_experts");
  layer.top_k = ffn.positive("moe_top_k");
  // An absent field has transformers' default; null means no renormalisation.
  const bool normalizes = !ffn.is_null("moe_normalize_expert_weights");
  const auto p = ffn.get<double>("moe_normalize_expert_weights", 1.0);
  if (ffn.has("moe_normalize_expert_weights"))
    ffn.check(p > 0 && p <= 1024, "moe_normalize_expert_weights");
  layer.rule = presets::dbrx(p, jitter_within(ffn, "moe_jitter_eps", 0.0));
  if (!normalizes) layer.rule.renormalization = {};
  require_absent(ffn, "uniform_expert_assignment");
  if (ffn.has("ffn_act_fn")) {
    const ConfigReader activation(ffn["ffn_act_fn"], config.source());
    layer.activation = activation_of(ffn, "ffn_act_fn", activation.get<std::string>("name"));
  }
}

inline void read_switch(const ConfigReader& config, LayerConfig& layer) {
  layer.d_ff = config.positive("d_ff");
  layer.num_experts = config.positive("num_experts");
  layer.top_k = 1;
  layer.activation =
      activation_of(config, "dense_act_fn", config.get<std::string>("dense_act_fn", "relu"));
  require_absent(config, "is_gated_act");
  layer.router_bias = config.get<bool>("router_bias", false);
  layer.rule = presets::switch_transformer(jitter_within(config, "router_jitter_noise", 0.01));
  layer.capacity = {.formula = CapacityFormula::fixed,
                    .fixed_rows = number_within<Index>(config, "expert_capacity", 64, 0, most_rows),
                    .order = DropOrder::slot_major};
}

inline void read_nllb(const ConfigReader& config, LayerConfig& layer) {
  layer.d_ff = config.positive("encoder_ffn_dim");
  if (config.get<Index>("decoder_ffn_dim", layer.d_ff) != layer.d_ff)
    config.fail("'decoder_ffn_dim' other than 'encoder_ffn_dim' is not supported");
  layer.num_experts = config.positive("num_experts");
  layer.top_k = 2;
  require_value(config, "second_expert_policy", "all");
  layer.activation = activation_of(config, "activation_function",
                                   config.get<std::string>("activation_function", "relu"));
  layer.router_bias = config.get<bool>("router_bias", false);
  layer.rule = presets::nllb_moe(config.get<bool>("normalize_router_prob_before_dropping", false),
                                 number_within(config, "moe_token_dropout", 0.2, 0.0, 1.0));
  layer.capacity.order = config.get<bool>("batch_prioritized_routing", false)
                             ? DropOrder::batch_priority
                             : DropOrder::slot_major;
  const double share =
      number_within(config, "moe_eval_capacity_token_fraction", 1.0, -1.0, 1e9);  // -1: none
  if (share > 0) {
    layer.capacity.formula = CapacityFormula::token_share;
    layer.capacity.factor = share;
  } else if (config.is_null("expert_capacity")) {  // 2 ceil(T / E)
    layer.capacity.formula = CapacityFormula::tutel;
    layer.capacity.factor = 1;
  } else {
    layer.capacity.formula = CapacityFormula::fixed;
    layer.capacity.fixed_rows = number_within<Index>(config, "expert_capacity", 64, 0, most_rows);
  }
}

/// The fields of one family; sizes that every family has are there already.
inline void read_family(const ConfigReader& config, LayerConfig& layer) {
  const auto norm = [&](bool otherwise) { return config.get<bool>("norm_topk_prob", otherwise); };
  switch (layer.family) {
    case Family::mixtral:
    case Family::phimoe:
    case Family::llama4:
    case Family::gpt_oss:
    case Family::jetmoe:
    case Family::granitemoe:
      layer.d_ff = config.positive("intermediate_size");
      layer.num_experts = config.positive("num_local_experts");
      break;
    case Family::qwen2_moe:
    case Family::qwen3_moe:
      layer.d_ff = config.positive("moe_intermediate_size");
      layer.num_experts = config.positive("num_experts");
      break;
    case Family::olmoe:
      layer.d_ff = config.positive("intermediate_size");
      layer.num_experts = config.positive("num_experts");
      break;
    case Family::ernie4_5_moe:
      layer.d_ff = config.positive("moe_intermediate_size");
      layer.num_experts = config.positive("moe_num_experts");
      break;
    default:
      break;
  }
  switch (layer.family) {
    case Family::mixtral:
      layer.rule = presets::mixtral(jitter_within(config, "router_jitter_noise", 0.0));
      break;
    case Family::qwen2_moe:
      layer.shared_d_ff = config.positive("shared_expert_intermediate_size");
      layer.rule = presets::qwen2_moe(norm(false));
      break;
    case Family::qwen3_moe:
      // transformers' default for an absent field is false, unlike the published checkpoints.
      layer.rule = presets::qwen3_moe(norm(false));
      break;
    case Family::olmoe:
      layer.rule = presets::olmoe(norm(false));
      break;
    case Family::dbrx:
      return read_dbrx(config, layer);
    case Family::deepseek_v2:
    case Family::deepseek_v3:
    case Family::glm4_moe:
      return read_deepseek(config, layer);
    case Family::phimoe:
      layer.sparse_mixer_jitter = jitter_within(config, "router_jitter_noise", 0.01);
      layer.input_jitter = jitter_within(config, "input_jitter_noise", 0.0);
      if (layer.top_k != 2) config.fail("'num_experts_per_tok' must be 2");
      break;
    case Family::llama4:
      layer.shared_d_ff = layer.d_ff;
      layer.rule = presets::llama4();
      break;
    case Family::gpt_oss:
      layer.rule = presets::gpt_oss();
      layer.activation = CheckpointActivation::clamped_swiglu;
      layer.clamp.limit = config.get<double>("swiglu_limit", 7.0);
      break;
    case Family::jetmoe:
      layer.rule = presets::jetmoe();
      break;
    case Family::granitemoe:
      layer.rule = presets::granitemoe();
      layer.shared_d_ff =
          number_within<Index>(config, "shared_intermediate_size", 0, 0, Index{1} << 31);
      break;
    case Family::ernie4_5_moe:
      require_absent(config, "use_bias");
      layer.shared_d_ff = shared_width(config, "moe_num_shared_experts", 2, layer.d_ff);
      layer.rule = presets::ernie4_5_moe(config.get<double>("moe_norm_min", 1e-12));
      break;
    case Family::switch_transformers:
      return read_switch(config, layer);
    case Family::nllb_moe:
      return read_nllb(config, layer);
  }
}

}  // namespace detail

/// Reads a model's config.json. `source` is named in errors. Without a field `model_type`, the
/// family is `otherwise`.
///
/// Throws  FormatError if the model type is of no supported family, or a field is missing, absurd
///         or asks for what is not supported.
inline LayerConfig layer_config(const nlohmann::json& json, const std::string& source,
                                std::optional<Family> otherwise = std::nullopt) {
  const ConfigReader whole(json, source);
  LayerConfig layer;
  // A model of several modalities nests its language model's configuration.
  const bool is_nested = whole.has("text_config");
  const ConfigReader config(is_nested ? whole["text_config"] : json, source);
  if (otherwise && !whole.has("model_type")) {
    layer.family = *otherwise;
  } else {
    auto model_type = whole.get<std::string>("model_type");
    for (const auto& [alias, name] :
         {std::pair{"llama4_text", "llama4"}, std::pair{"granitemoeshared", "granitemoe"}})
      if (model_type == alias) model_type = name;
    const detail::FamilyTraits* traits = nullptr;
    for (const detail::FamilyTraits& known : detail::families)
      if (known.model_type == model_type) traits = &known;
    if (traits == nullptr)
      whole.fail(moe::detail::text_of("model_type '", model_type, "' is not supported"));
    layer.family = traits->family;
  }
  const bool is_short = layer.family == Family::dbrx ||
                        layer.family == Family::switch_transformers ||
                        layer.family == Family::nllb_moe;
  layer.d_model = config.positive(is_short ? "d_model" : "hidden_size");
  if (layer.family == Family::ernie4_5_moe) {
    layer.top_k = config.positive("moe_k");
  } else if (!is_short) {
    layer.top_k = config.positive("num_experts_per_tok");
  }
  const char* const act = layer.family == Family::jetmoe ? "activation_function" : "hidden_act";
  if (!is_short)
    layer.activation = detail::activation_of(config, act, config.get<std::string>(act, "silu"));
  detail::read_family(config, layer);
  return layer;
}

/// What stands before "block_sparse_moe." in the names of a block.
inline std::string block_parent(std::string_view prefix) {
  constexpr std::string_view block = "block_sparse_moe.";
  return std::string(prefix.ends_with(block) ? prefix.substr(0, prefix.size() - block.size())
                                             : prefix);
}

/// What the names and shapes of a block alone tell; the rest is what a config.json without those
/// fields stands for, and the K of the family's best known model. Where models of one family differ
/// (scale, groups, K), give their config.json.
///
/// Throws  FormatError naming a tensor that is missing or has too few dimensions.
inline LayerConfig layer_config_of_block(const Tensors& tensors, const FoundBlock& block) {
  const detail::FamilyTraits& traits = detail::traits_of(block.family);
  const auto size = [&](std::string_view name, std::size_t dimension) {
    return tensors.dimension(moe::detail::text_of(block.prefix, name), dimension);
  };
  const Index experts = size(traits.router, 0);
  const Index d_model = size(traits.router, 1);
  Index d_ff = 0;
  switch (traits.layout) {
    case detail::ExpertLayout::gated:
      d_ff = size(moe::detail::text_of("experts.0.", traits.up, ".weight"), 0);
      break;
    case detail::ExpertLayout::plain:
    case detail::ExpertLayout::plain_bias:
      d_ff = size(moe::detail::text_of("experts.expert_0.", traits.up, ".weight"), 0);
      break;
    case detail::ExpertLayout::stacked:
      d_ff = size(traits.up, 0) / std::max<Index>(experts, 1);
      break;
    case detail::ExpertLayout::fused_in_out:
      d_ff = size(traits.down, 1);
      break;
    case detail::ExpertLayout::fused_biased:  // As published, in blocks of 32.
      d_ff = tensors.contains(moe::detail::text_of(block.prefix, traits.down))
                 ? size(traits.down, 1)
                 : size(moe::detail::text_of(traits.down, "_blocks"), 2) * 32;
      break;
    case detail::ExpertLayout::fused_out_in:
      d_ff = size(moe::detail::text_of(traits.down, ".weight"), 2);
      break;
  }
  nlohmann::json json{{"model_type", traits.model_type},
                      {"hidden_size", d_model},
                      {"d_model", d_model},
                      {"num_experts_per_tok", traits.default_top_k},
                      {"moe_k", traits.default_top_k},
                      {"intermediate_size", d_ff},
                      {"moe_intermediate_size", d_ff},
                      {"d_ff", d_ff},
                      {"encoder_ffn_dim", d_ff},
                      {"num_local_experts", experts},
                      {"num_experts", experts},
                      {"n_routed_experts", experts},
                      {"moe_num_experts", experts},
                      {"shared_expert_intermediate_size", 1}};
  json["ffn_config"] = {{"ffn_hidden_size", d_ff},
                        {"moe_num_experts", experts},
                        {"moe_top_k", traits.default_top_k},
                        {"moe_normalize_expert_weights", 1.0}};
  if (block.family == Family::qwen3_moe) json["norm_topk_prob"] = true;
  LayerConfig layer = layer_config(json, tensors.path());
  layer.shared_d_ff = 0;
  const std::string shared = moe::detail::text_of(traits.shared, "up_proj.weight");
  if (!traits.shared.empty() && tensors.contains(block.prefix + shared))
    layer.shared_d_ff = size(shared, 0);
  if (block.family == Family::granitemoe) {  // Beside the block, gate and up fused.
    const std::string fused =
        moe::detail::text_of(block_parent(block.prefix), traits.shared, "input_linear.weight");
    if (tensors.contains(fused)) layer.shared_d_ff = tensors.dimension(fused, 0) / 2;
  }
  layer.router_bias = tensors.contains(block.prefix + "router.classifier.bias");
  return layer;
}

}  // namespace moe::inline MOE_ABI::io
