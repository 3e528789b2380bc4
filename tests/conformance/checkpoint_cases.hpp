// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Cases of the families whose checkpoints the library loads: they go through the same loader.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "conformance/comparison.hpp"
#include "conformance/gradients.hpp"
#include "conformance/outcome.hpp"

namespace conformance {

using moe::io::CheckpointActivation;
using moe::io::Family;
using moe::losses::BalanceScale;

inline CheckpointActivation activation_of(const GoldenCase& golden) {
  const std::string& name = golden.text("activation");
  if (name == "silu") return CheckpointActivation::silu;
  if (name == "relu") return CheckpointActivation::relu;
  if (name == "gelu") return CheckpointActivation::gelu;
  if (name == "gelu_new") return CheckpointActivation::gelu_tanh;
  if (golden.family() == "gpt_oss") return CheckpointActivation::clamped_swiglu;
  throw std::runtime_error("the activation '" + name + "' is not known");
}

inline moe::presets::BiasedSigmoid biased_sigmoid(const GoldenCase& golden) {
  return {.groups = golden.size("n_group"),
          .groups_kept = golden.size("topk_group"),
          .norm_topk_prob = golden.flag("norm_topk_prob"),
          .scale = golden.number("routed_scaling_factor")};
}

inline moe::presets::GroupedSoftmax grouped_softmax(const GoldenCase& golden) {
  const std::string& method = golden.text("topk_method");
  const bool grouped = method == "group_limited_greedy";
  if (!grouped && method != "greedy") throw std::runtime_error("'topk_method' is '" + method + "'");
  return {.groups = grouped ? golden.size("n_group") : 1,
          .groups_kept = grouped ? golden.size("topk_group") : 1,
          .norm_topk_prob = golden.flag("norm_topk_prob"),
          .scale = golden.number("routed_scaling_factor")};
}

/// DeepSeek's own code decides by the presence of the bias between the two group scores, and
/// renormalises sigmoid scores only.
inline moe::RoutingRule official_rule(const GoldenCase& golden) {
  moe::RoutingRule rule = moe::presets::deepseek_v3(biased_sigmoid(golden));
  if (!golden.has(golden.weights_prefix() + "gate.e_score_correction_bias"))
    rule.groups.score = moe::GroupScore::maximum;
  if (golden.text("scoring") == "softmax") {
    rule.score = moe::ScoreFunction::softmax;
    rule.renormalization.kind = moe::Renormalization::none;
  }
  return rule;
}

inline moe::Capacity nllb_capacity(const GoldenCase& golden) {
  moe::Capacity capacity;
  capacity.order =
      golden.flag("bpr", false) ? moe::DropOrder::batch_priority : moe::DropOrder::slot_major;
  const double share = golden.number("eval_frac", 0);
  const std::string rows = golden.text("capacity", "None");
  if (share > 0) {
    capacity.formula = moe::CapacityFormula::token_share;
    capacity.factor = share;
  } else if (rows == "None" || rows == "none") {  // 2 ceil(T / E)
    capacity.formula = moe::CapacityFormula::tutel;
    capacity.factor = 1;
  } else {
    capacity.formula = moe::CapacityFormula::fixed;
    capacity.fixed_rows = golden.size("capacity");
  }
  return capacity;
}

/// The p of a p-norm, 0 for no renormalisation.
inline double norm_of(const GoldenCase& golden) {
  const std::string p = golden.text("norm_p", "none");
  const bool has_none =
      p == "none" || p == "None" || p.empty() || golden.text("norm_topk_prob", "p") == "0";
  return has_none ? 0 : std::stod(p);
}

/// The layer of a case, or nothing where the family is of another kind.
inline bool is_checkpoint_family(const std::string& family) {
  for (const std::string_view known :
       {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "dbrx", "deepseek_v2", "deepseek_v2_official",
        "deepseek_v3", "deepseek_v3_official", "glm4_moe", "phimoe", "llama4", "gpt_oss", "jetmoe",
        "granitemoe", "ernie4_5_moe", "switch", "nllb_moe"})
    if (known == family) return true;
  return false;
}

inline moe::io::LayerConfig layer_config(const GoldenCase& golden) {
  const std::string family = golden.family();
  moe::io::LayerConfig config;
  config.d_model = golden.size("d_model");
  config.d_ff = golden.size("d_ff");
  config.num_experts = golden.size("E");
  config.top_k = golden.size("k");
  config.activation = activation_of(golden);
  config.shared_d_ff = golden.size("shared_d_ff", config.d_ff * golden.size("n_shared", 0));
  const auto as = [&](Family of, const moe::RoutingRule& rule) {
    config.family = of;
    config.rule = rule;
  };
  namespace presets = moe::presets;
  if (family == "mixtral") {
    as(Family::mixtral, presets::mixtral());
  } else if (family == "qwen2_moe") {
    as(Family::qwen2_moe, presets::qwen2_moe(golden.flag("norm_topk_prob")));
  } else if (family == "qwen3_moe") {
    as(Family::qwen3_moe, presets::qwen3_moe(golden.flag("norm_topk_prob")));
  } else if (family == "olmoe") {
    as(Family::olmoe, presets::olmoe(golden.flag("norm_topk_prob")));
  } else if (family == "dbrx") {
    const double p = norm_of(golden);
    as(Family::dbrx, p > 0 ? presets::dbrx(p) : moe::RoutingRule{});
  } else if (family == "deepseek_v2") {
    as(Family::deepseek_v2, presets::deepseek_v2_transformers(grouped_softmax(golden)));
  } else if (family == "deepseek_v2_official") {
    as(Family::deepseek_v2, presets::deepseek_v2_scaled(grouped_softmax(golden)));
  } else if (family == "deepseek_v3") {
    as(Family::deepseek_v3, presets::deepseek_v3_transformers(biased_sigmoid(golden)));
  } else if (family == "deepseek_v3_official") {
    const bool has_bias = golden.has(golden.weights_prefix() + "gate.e_score_correction_bias");
    as(has_bias ? Family::deepseek_v3 : Family::deepseek_v2, official_rule(golden));
  } else if (family == "glm4_moe") {
    as(Family::glm4_moe, presets::glm4_moe(biased_sigmoid(golden)));
  } else if (family == "phimoe") {
    config.family = Family::phimoe;
    config.sparse_mixer_jitter = golden.number("jitter");
  } else if (family == "llama4") {
    as(Family::llama4, presets::llama4());
    const std::string shared = golden.weights_prefix() + "shared_expert.up_proj.weight";
    if (golden.has(shared)) config.shared_d_ff = golden.tensors().tensor(shared).shape.at(0);
  } else if (family == "gpt_oss") {
    as(Family::gpt_oss, presets::gpt_oss());
    config.clamp = {.alpha = golden.number("swiglu_alpha"), .limit = golden.number("swiglu_limit")};
  } else if (family == "jetmoe") {
    as(Family::jetmoe, presets::jetmoe());
  } else if (family == "granitemoe") {
    as(Family::granitemoe, presets::granitemoe());
  } else if (family == "ernie4_5_moe") {
    as(Family::ernie4_5_moe, presets::ernie4_5_moe(golden.number("norm_min")));
  } else if (family == "switch") {
    as(Family::switch_transformers, presets::switch_transformer());
    config.router_bias = golden.has(golden.weights_prefix() + "router.classifier.bias");
    config.capacity = {.formula = moe::CapacityFormula::fixed,
                       .fixed_rows = golden.size("capacity"),
                       .order = moe::DropOrder::slot_major,
                       .group_tokens = golden.size("seq")};
  } else if (family == "nllb_moe") {
    as(Family::nllb_moe,
       presets::nllb_moe(golden.flag("norm_before_drop"), golden.number("token_dropout", 0)));
    config.router_bias = golden.has(golden.weights_prefix() + "router.classifier.bias");
    config.capacity = nllb_capacity(golden);
  }
  return config;
}

inline std::vector<std::uint8_t> token_mask(const GoldenCase& golden) {
  const auto stored = golden.matrix<std::int64_t>("attention_mask");  // (B, S)
  std::vector<std::uint8_t> mask;
  for (Index i = 0; i < stored.size(); ++i) mask.push_back(stored.data()[i] != 0 ? 1 : 0);
  return mask;
}

/// Losses of a family's case.
template <class Scalar>
void compare_losses(const Outcome<Scalar>& outcome, Comparison& comparison) {
  namespace losses = moe::losses;
  const GoldenCase& golden = comparison.golden();
  const moe::Routing<Scalar>& routing = outcome.routing;
  const std::string family = golden.family();
  if (comparison.expects("aux_loss")) {
    double loss = 0;
    if (family == "switch") {
      loss = static_cast<double>(
          losses::load_balancing_by_group(routing, golden.size("seq"), BalanceScale::first_choice));
    } else if (family == "deepseek_v2_official") {
      loss = golden.number("alpha") *
             static_cast<double>(golden.flag("seq_aux")
                                     ? losses::deepseek_sequence(routing, golden.size("seq"))
                                     : losses::deepseek_expert(routing));
    } else {
      loss = static_cast<double>(losses::transformers(routing));
    }
    comparison.compare("aux_loss", loss);
  }
  if (comparison.expects("aux_loss_masked"))
    comparison.compare("aux_loss_masked",
                       static_cast<double>(losses::transformers(routing, token_mask(golden))));
  if (comparison.expects("aux_loss_hf_literal")) {
    // transformers reads a dropped token's expert from a row of zeros.
    moe::Routing<Scalar> literal = routing;
    for (const moe::TokenSlot dropped : outcome.plan.dropped)
      literal.experts(dropped.token, dropped.slot) = 0;
    comparison.compare("aux_loss_hf_literal",
                       static_cast<double>(losses::load_balancing_by_group(
                           literal, golden.size("seq"), BalanceScale::first_choice)));
  }
  if (comparison.expects("z_loss"))
    comparison.compare("z_loss", static_cast<double>(losses::z_loss(routing)));
  if (comparison.expects("paper_seq_aux"))
    comparison.compare("paper_seq_aux",
                       static_cast<double>(losses::deepseek_sequence(routing, routing.tokens())));
}

/// What a case adds to its loss, with the coefficients of the case.
template <class Scalar>
CaseLosses<Scalar> losses_of(const GoldenCase& golden) {
  return [&golden](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
    namespace losses = moe::losses;
    const std::string family = golden.family();
    double coefficient = golden.number("loss_aux_coef", 0);
    double sum = 0;
    if (coefficient != 0) {
      if (family == "deepseek_v2_official") coefficient *= golden.number("alpha");
      const losses::LossGradient<Scalar> gradient{tape->d_logits, coefficient};
      Scalar loss = 0;
      if (family == "switch") {
        loss = losses::load_balancing_by_group(routing, golden.size("seq"),
                                               BalanceScale::first_choice, {}, gradient);
      } else if (family == "deepseek_v2_official") {
        loss = golden.flag("seq_aux")
                   ? losses::deepseek_sequence(routing, golden.size("seq"), {}, gradient)
                   : losses::deepseek_expert(routing, {}, gradient);
      } else {
        loss = losses::transformers(routing, {}, gradient);
      }
      sum += coefficient * static_cast<double>(loss);
    }
    const double z = golden.number("loss_z_coef", 0);
    if (z != 0) sum += z * static_cast<double>(losses::z_loss(routing, {}, {tape->d_logits, z}));
    return sum;
  };
}

/// What only the families with a selection bias have.
template <class Scalar>
void compare_bias(const moe::TopKRouter<Scalar>& router, const Outcome<Scalar>& outcome,
                  Comparison& comparison) {
  const moe::Vector<Scalar>& bias = router.weights().selection_bias;
  if (comparison.expects("scores_for_choice")) {
    Matrix<Scalar> scores = outcome.routing.scores;  // (T, E)
    if (bias.size() != 0) scores.rowwise() += bias.transpose();
    comparison.compare("scores_for_choice", scores);
  }
  if (comparison.expects("paper_bias_after_update")) {
    moe::Vector<Scalar> after = bias;
    const std::vector<Index> load = moe::metrics::expert_load(outcome.routing);
    moe::BiasController{.rate = comparison.golden().number("gamma")}.update(
        std::span<const Index>(load), after);
    comparison.compare("paper_bias_after_update", after);
  }
}

template <class Scalar>
void run_checkpoint_case(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  // Granite's cases with a shared expert name the layer, its others the block.
  std::string prefix = golden.weights_prefix();
  if (golden.family() == "granitemoe" && !prefix.ends_with("block_sparse_moe."))
    prefix += "block_sparse_moe.";
  const moe::io::LayerConfig config = layer_config(golden);
  const auto layer = moe::io::load_block<Scalar>(golden.tensors(), config, prefix);
  const Outcome<Scalar> outcome = run_layer(layer, golden.matrix<Scalar>("input"));
  const auto dropout = static_cast<Scalar>(golden.number("token_dropout", 0));
  compare_outcome(outcome, comparison, 1 - dropout);
  compare_losses(outcome, comparison);
  if (golden.has("grad_output"))
    compare_gradients<Scalar>(layer, config, prefix, losses_of<Scalar>(golden), 1 - dropout,
                              comparison);
  if (const auto* router = layer.router().template target<moe::TopKRouter<Scalar>>())
    compare_bias(*router, outcome, comparison);
  if (comparison.expects("topk_probs")) comparison.compare("topk_probs", outcome.routing.weights);
  if (golden.has_entry("capacity_used")) {
    const Index limit = layer.capacity().rows(layer.capacity().group_size(outcome.plan.tokens),
                                              outcome.plan.top_k, layer.experts().num_experts());
    if (limit != golden.size("capacity_used")) comparison.fail("another capacity was used");
  }
}

}  // namespace conformance
