// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The routing rules of published families, by name. Sizes (D, E, K) belong to the RouterConfig.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI::presets {

/// Softmax over all experts, the K best, divided by their sum. The same as a softmax over the
/// chosen logits, to rounding.
/// Source  Jiang et al. (2024), arXiv:2401.04088; transformers `mixtral`.
constexpr RoutingRule mixtral() {
  return {.renormalization = {.kind = Renormalization::sum}};
}

/// As Mixtral; `norm_topk_prob` is true in every published checkpoint, and false leaves the weights
/// as they are.
/// Source  Yang et al. (2025), arXiv:2505.09388; transformers `qwen3_moe`.
constexpr RoutingRule qwen3_moe(bool norm_topk_prob = true) {
  return {
      .renormalization = {.kind = norm_topk_prob ? Renormalization::sum : Renormalization::none}};
}

/// As Mixtral without renormalisation: `norm_topk_prob` is false in the published checkpoints.
/// Source  Muennighoff et al. (2024), arXiv:2409.02060; transformers `olmoe`.
constexpr RoutingRule olmoe(bool norm_topk_prob = false) {
  return qwen3_moe(norm_topk_prob);
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
/// Differs from `deepseek_v3_transformers` where a selection score is negative.
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

}  // namespace moe::inline MOE_ABI::presets
