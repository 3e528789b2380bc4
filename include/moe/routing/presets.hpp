// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The routing rules of published families, by name. Sizes (D, E, K) belong to the RouterConfig,
// capacities to the layer.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI::presets {

/// Softmax over all experts, the K best, divided by their sum. The same as a softmax over the
/// chosen logits, to rounding. In training, transformers multiplies the hidden states by noise of
/// `jitter`; its default is 0.
/// Source  Jiang et al. (2024), arXiv:2401.04088; transformers `mixtral`.
constexpr RoutingRule mixtral(double jitter = 0) {
  return {.renormalization = {.kind = Renormalization::sum},
          .jitter = {.target = JitterTarget::hidden_states, .epsilon = jitter}};
}

/// Softmax over all experts, the K best as they are.
/// Source  xAI (2024), grok-1 `model.py`.
/// Differs from llama.cpp, which renormalises the weights of Grok.
constexpr RoutingRule grok_1() {
  return {};
}

/// Softmax over all experts, the K best, divided by their p-norm (p = 1 in the published model). In
/// training the hidden states are multiplied by noise of `jitter` (`moe_jitter_eps`).
/// Source  Databricks (2024), dbrx; transformers `dbrx`, `moe_normalize_expert_weights`.
constexpr RoutingRule dbrx(double p = 1, double jitter = 0) {
  return {.renormalization = {.kind = Renormalization::p_norm, .p = p},
          .jitter = {.target = JitterTarget::hidden_states, .epsilon = jitter}};
}

/// As Mixtral, renormalised only with `norm_topk_prob`, which is false in the published
/// checkpoints. The shared expert is gated.
/// Source  Qwen team (2024), arXiv:2407.10671; transformers `qwen2_moe`.
constexpr RoutingRule qwen2_moe(bool norm_topk_prob = false) {
  return {
      .renormalization = {.kind = norm_topk_prob ? Renormalization::sum : Renormalization::none}};
}

/// As Mixtral; `norm_topk_prob` is true in every published checkpoint, and false leaves the weights
/// as they are.
/// Source  Yang et al. (2025), arXiv:2505.09388; transformers `qwen3_moe`.
constexpr RoutingRule qwen3_moe(bool norm_topk_prob = true) {
  return qwen2_moe(norm_topk_prob);
}

/// As Mixtral without renormalisation: `norm_topk_prob` is false in the published checkpoints.
/// Source  Muennighoff et al. (2024), arXiv:2409.02060; transformers `olmoe`.
constexpr RoutingRule olmoe(bool norm_topk_prob = false) {
  return qwen2_moe(norm_topk_prob);
}

/// Options of the DeepSeek-V2 forms that differ between checkpoints.
struct GroupedSoftmax {
  Index groups = 1;             ///< `n_group`; 1 is `topk_method` greedy
  Index groups_kept = 1;        ///< `topk_group`
  bool norm_topk_prob = false;  ///< has effect for K > 1 only
  double scale = 1;             ///< `routed_scaling_factor`
};

/// Softmax over all experts; the K best within the groups of the best experts, others counting as
/// 0; divided by sum + 1e-20 with `norm_topk_prob` and K > 1, and then not scaled; else times
/// `scale`. This is the code published with DeepSeek-V2.
/// Source  DeepSeek-AI (2024), arXiv:2405.04434; `modeling_deepseek.py` of DeepSeek-V2.
/// Differs from `deepseek_v2_scaled` and `deepseek_v2_transformers` with `norm_topk_prob`; from
/// DeepSpeed's AutoEP, which always scales and fills other groups with -infinity.
constexpr RoutingRule deepseek_v2(const GroupedSoftmax& options = {}) {
  RoutingRule rule{.groups = {.count = options.groups,
                              .kept = options.groups_kept,
                              .score = GroupScore::maximum,
                              .fill = GroupFill::zero},
                   .scale = options.scale};
  if (options.norm_topk_prob) {
    rule.renormalization = {.kind = Renormalization::sum, .epsilon = 1e-20, .at_top_1 = false};
    rule.scales_renormalized = false;
  }
  return rule;
}

/// The same, but scaled whether renormalised or not.
/// Source  `modeling_deepseek.py` of DeepSeek-VL2.
constexpr RoutingRule deepseek_v2_scaled(const GroupedSoftmax& options = {}) {
  RoutingRule rule = deepseek_v2(options);
  rule.scales_renormalized = true;
  return rule;
}

/// The same, but `norm_topk_prob` has no effect.
/// Source  transformers `deepseek_v2`.
constexpr RoutingRule deepseek_v2_transformers(const GroupedSoftmax& options = {}) {
  return deepseek_v2({.groups = options.groups,
                      .groups_kept = options.groups_kept,
                      .norm_topk_prob = false,
                      .scale = options.scale});
}

/// Options of the DeepSeek-V3 form that differ between checkpoints.
struct BiasedSigmoid {
  Index groups = 1;       ///< `n_group`
  Index groups_kept = 1;  ///< `topk_group`
  bool norm_topk_prob = true;
  double scale = 1;  ///< `routed_scaling_factor`
};

/// Sigmoid scores; selection by score plus bias within the groups of the best two-expert sums; the
/// weight is the score without the bias, divided by the sum of the chosen, times `scale`.
/// This is DeepSeek's own inference code: experts of other groups cannot be chosen, and no epsilon.
/// Source  DeepSeek-AI (2024), arXiv:2412.19437; DeepSeek-V3 `inference/model.py`.
/// Differs from `deepseek_v3_transformers` where a selection score is negative; from Megatron,
/// whose groups score by the sum of their best K / topk_group, which is 2 in the published model,
/// and which adds 1e-20; from ik_llama.cpp, which ignores the groups unless told otherwise.
constexpr RoutingRule deepseek_v3(const BiasedSigmoid& options = {}) {
  return {.score = ScoreFunction::sigmoid,
          .groups = {.count = options.groups,
                     .kept = options.groups_kept,
                     .score = GroupScore::top_sum,
                     .top = 2,
                     .fill = GroupFill::negative_infinity},
          .renormalization = {.kind = options.norm_topk_prob ? Renormalization::sum
                                                             : Renormalization::none},
          .scale = options.scale};
}

/// The same as transformers computes it: experts of other groups count as 0, so they win against
/// negative selection scores, and 1e-20 is added to the sum.
/// Source  transformers `deepseek_v3`.
constexpr RoutingRule deepseek_v3_transformers(const BiasedSigmoid& options = {}) {
  RoutingRule rule = deepseek_v3(options);
  rule.groups.fill = GroupFill::zero;
  rule.renormalization.epsilon = 1e-20;
  return rule;
}

/// The form of `deepseek_v3_transformers`; published checkpoints have a single group.
/// Source  GLM-4.5 team (2025), arXiv:2508.06471; transformers `glm4_moe`.
constexpr RoutingRule glm4_moe(const BiasedSigmoid& options = {}) {
  return deepseek_v3_transformers(options);
}

/// As DeepSeek-V3 without groups; published with 384 experts and a scale of 2.827.
/// Source  Kimi team (2025), arXiv:2507.20534; transformers' DeepSeek-V3 code runs it.
constexpr RoutingRule kimi_k2(double scale = 2.827) {
  return deepseek_v3_transformers({.scale = scale});
}

/// Sigmoid scores, selection by score plus bias, divided by the sum without an epsilon; no scale.
/// Source  MiniMax (2025), MiniMax-M2; transformers `minimax_m2`.
constexpr RoutingRule minimax_m2() {
  return deepseek_v3();
}

/// Square roots of softplus scores, selection by score plus bias, divided by their sum, times
/// `scale`. The first layers of the model choose by a table instead: HashRouter.
/// Source  DeepSeek-V4, as llama.cpp and ik_llama.cpp run it. llama.cpp clamps the sum from below
///         at 6.1035e-5, half precision's least normal number, as it does for all families; here
///         the sum is as it is.
constexpr RoutingRule deepseek_v4(double scale = 1) {
  return {.score = ScoreFunction::sqrt_softplus,
          .renormalization = {.kind = Renormalization::sum},
          .scale = scale};
}

/// Softmax over all experts, selection by probability plus bias, weights divided by
/// max(sum, norm_min).
/// Source  Baidu (2025), ERNIE 4.5; transformers `ernie4_5_moe`.
constexpr RoutingRule ernie4_5_moe(double norm_min = 1e-12) {
  return {.renormalization = {.kind = Renormalization::clamped_sum, .epsilon = norm_min}};
}

/// The K best logits, softmax over those only.
/// Source  Shen et al. (2024), arXiv:2404.07413; transformers `jetmoe`.
constexpr RoutingRule jetmoe() {
  return {.score = ScoreFunction::identity, .weights_from = WeightSource::softmax_of_chosen};
}

/// As JetMoE.
/// Source  IBM (2024), Granite 3; transformers `granitemoe`.
constexpr RoutingRule granitemoe() {
  return jetmoe();
}

/// As JetMoE; the router has a bias.
/// Source  OpenAI (2025), gpt-oss `torch/model.py`; transformers `gpt_oss`.
constexpr RoutingRule gpt_oss() {
  return jetmoe();
}

/// The best logit; the expert's input is multiplied by its sigmoid.
/// Source  Meta (2025), Llama 4; transformers `llama4`.
constexpr RoutingRule llama4() {
  return {.score = ScoreFunction::identity,
          .weights_from = WeightSource::sigmoid_of_chosen,
          .weight_target = WeightTarget::input};
}

/// Softmax over all experts, zero-cost ones included; selection by probability plus bias; weights
/// as they are, times `scale`. Experts beyond the routed ones are identities: ZeroCostExperts.
/// Source  Meituan (2025), arXiv:2509.01322; transformers `longcat_flash`; the published
///         configuration scales by 6.
constexpr RoutingRule longcat_flash(double scale = 6) {
  return {.scale = scale};
}

/// Softmax over all experts, the last of which is the zero expert: its weight is set to 0 before
/// the weights are divided by their sum. The logits of the previous layer come in by
/// `RouterWeights::residual`. Inputs of the experts are multiplied by K = 2, which is not what
/// multiplying their outputs by 2 would give.
/// Source  Jin et al. (2024), arXiv:2410.07348; SkyworkAI `moe_plus_plus_layer.py`, with its
///         options at the defaults but the gate of one layer (see LogitForm::two_layer for the
///         other).
/// Differs from the paper, which has no such factor, and capacities of another size for experts
/// without a cost.
constexpr RoutingRule moe_plus_plus() {
  return {
      .weightless_experts = 1, .renormalization = {.kind = Renormalization::sum}, .input_scale = 2};
}

/// Softmax over all experts, the best one, weighted by its probability. In training the router's
/// input is multiplied by noise of `jitter`. Capacity: tokens_floor, minimum 4, by position.
/// Source  Fedus et al. (2021), arXiv:2101.03961; Mesh TensorFlow `moe.py`.
/// Differs from flaxformer, which rounds the capacity (tokens_round); from transformers, whose
/// capacity is a fixed number of rows in every sequence; from fastmoe, which adds the noise.
constexpr RoutingRule switch_transformer(double jitter = 1e-2) {
  return {.jitter = {.target = JitterTarget::router_input, .epsilon = jitter}};
}

/// Softmax over all experts, the two best, divided by sum + 1e-9 before any drop. Capacity:
/// tokens_floor, slot_major, at least 4 and a multiple of 4 in lingvo, neither in Mesh TensorFlow;
/// the second expert may be kept at random: GShardRouter.
/// Source  Lepikhin et al. (2020), arXiv:2006.16668; lingvo `gshard_layers.py`.
/// Differs from fastmoe, whose softmax is over the chosen.
constexpr RoutingRule gshard() {
  return {.renormalization = {.kind = Renormalization::sum, .epsilon = 1e-9}};
}

/// As GShard, with gated experts and a capacity factor of 2.
/// Source  Du et al. (2021), arXiv:2112.06905.
constexpr RoutingRule glam() {
  return gshard();
}

/// Softmax over all experts, the two best as they are. Capacity: tokens_round, slot_major.
/// Source  Zoph et al. (2022), arXiv:2202.08906; flaxformer `TokensChooseMaskedRouter`.
constexpr RoutingRule st_moe(double jitter = 1e-2) {
  return switch_transformer(jitter);
}

/// Softmax over all experts, the two best, divided by max(sum, 1.2e-7) of those that the capacity
/// kept, or of both with `before_drop`; times 1 - `token_dropout`, which transformers does outside
/// of training only (in training it drops experts' outputs at random instead: pass 0 there).
/// Capacity: fixed in training, token_share outside of it; slot_major. Source  Costa-jussa et al.
/// (2022), arXiv:2207.04672; transformers `nllb_moe`.
constexpr RoutingRule nllb_moe(bool before_drop = false, double token_dropout = 0) {
  return {.renormalization = {.kind = Renormalization::clamped_sum,
                              .epsilon = 0x1p-23,
                              .after_drop = !before_drop},
          .scale = 1 - token_dropout};
}

/// Softmax over all experts, the K best as they are; in training with normal noise of deviation
/// `noise`, which is 1 / E in the paper. Capacity: choices_ceil in multiples of 4, batch_priority.
/// Source  Riquelme et al. (2021), arXiv:2106.05974; vmoe `routing.py`.
constexpr RoutingRule v_moe(double noise = 0) {
  return {.logits = {.noise = noise}};
}

/// DeepSpeed's gates: the best as it is for K = 1, else divided by max(sum, 1.2e-7) of those that
/// the capacity kept. Capacity: deepspeed, minimum 4; random for K = 1 (or by position), slot_major
/// for 2; from 3 on by_weight ('probs') or token_major ('position').
/// Source  Rajbhandari et al. (2022), arXiv:2201.05596; DeepSpeed `sharded_moe.py`.
constexpr RoutingRule deepspeed() {
  return {.renormalization = {.kind = Renormalization::clamped_sum,
                              .epsilon = 0x1p-23,
                              .at_top_1 = false,
                              .after_drop = true}};
}

/// Softmax over all experts, the K best, divided by their p-norm if p is positive. Capacity:
/// megablocks, token_major.
/// Source  Gale et al. (2022), arXiv:2211.15841; MegaBlocks `router.py`.
constexpr RoutingRule megablocks(double p = 1) {
  return p > 0 ? dbrx(p) : RoutingRule{};
}

}  // namespace moe::inline MOE_ABI::presets
