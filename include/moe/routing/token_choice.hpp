// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A RoutingRule applied to the logits of one token.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI {

/// Memory for `choose_experts`, one for each thread.
template <class Scalar>
struct TokenChoiceScratch {
  std::vector<Scalar> key;          // (E)
  std::vector<Scalar> group_score;  // (groups)
  std::vector<ExpertIndex> kept;    // (groups kept)

  TokenChoiceScratch() = default;
  TokenChoiceScratch(const RoutingRule& rule, Index num_experts) { resize(rule, num_experts); }

  /// Memory is reused.
  void resize(const RoutingRule& rule, Index num_experts) {
    key.resize(static_cast<std::size_t>(num_experts));
    group_score.resize(static_cast<std::size_t>(rule.groups.count));
    kept.resize(static_cast<std::size_t>(rule.groups.kept));
  }
};

namespace detail {

/// How many of the K chosen, best first, the token uses.
template <class Scalar>
Index limited_choices(const ChoiceLimit& limit, const Scalar* score, const ExpertIndex* expert,
                      Index top_k) noexcept {
  if (limit.kind == ChoiceLimitKind::none) return top_k;
  const auto value = static_cast<Scalar>(limit.value);
  Scalar sum = 0;
  Index count = 0;
  for (; count < top_k; ++count) {
    const Scalar s = score[expert[count]];
    if (count >= limit.minimum) {
      if (limit.kind == ChoiceLimitKind::top_p && sum >= value) break;
      if (limit.kind == ChoiceLimitKind::threshold && !(s > value)) break;
      if (limit.kind == ChoiceLimitKind::relative_threshold && !(s > value * score[expert[0]]))
        break;
    }
    sum += s;
  }
  return count;
}

/// The weight of a chosen expert with logit z and score s, before softmax and renormalisation.
template <class Scalar>
Scalar raw_weight(WeightSource source, Scalar z, Scalar s) noexcept {
  switch (source) {
    case WeightSource::softmax_of_chosen:
      return z;
    case WeightSource::sigmoid_of_chosen:
      return std::isnan(z) ? Scalar(0) : sigmoid(z);
    case WeightSource::one:
      return std::isnan(z) ? Scalar(0) : Scalar(1);
    default:
      return s;
  }
}

}  // namespace detail

/// Weighs experts that were chosen, best first. Where the rule renormalises after the drop, the
/// weights are neither renormalised nor scaled.
///
/// Shapes  logit, score (E), expert, weight (K); expert may end with `no_expert`.
template <class Scalar>
void weigh_experts(const RoutingRule& rule, const Scalar* logit, const Scalar* score,
                   Index num_experts, const ExpertIndex* expert, Index top_k, Scalar* weight) {
  Index used = 0;
  for (; used < top_k && expert[used] != no_expert; ++used)
    weight[used] = detail::raw_weight(rule.weights_from, logit[expert[used]], score[expert[used]]);
  for (Index k = used; k < top_k; ++k) weight[k] = 0;
  if (rule.weights_from == WeightSource::softmax_of_chosen) softmax(weight, used, weight);
  for (Index k = 0; k < used; ++k)
    if (expert[k] >= num_experts - rule.weightless_experts) weight[k] = 0;
  const bool finished = !rule.renormalization.after_drop;
  if (finished) detail::renormalize(rule.renormalization, top_k, weight, used);
  const bool scales =
      finished && (rule.scales_renormalized || !detail::renormalizes(rule.renormalization, top_k));
  const Scalar scale = scales ? static_cast<Scalar>(rule.scale) : Scalar(1);
  for (Index k = 0; k < used; ++k) {
    weight[k] *= scale;
    if (!std::isfinite(weight[k])) weight[k] = 0;  // Identity scores of infinite logits.
  }
}

/// Chooses the experts of one token and weighs them.
///
/// Shapes  logit, score, selection_bias (E), expert, weight (K); selection_bias may be null.
/// Values  score is what the rule's score function gives; weight as for `weigh_experts`.
/// Ties    lower expert index first. An expert with a NaN logit never wins against one without that
///         may be chosen, and has weight 0; a row of NaN selects 0 .. K-1 with weights 0.
/// Throws  std::invalid_argument if MOE_ISA names no level of this machine; the rule was checked
///         when the router was made.
template <class Scalar>
void choose_experts(const RoutingRule& rule, const Scalar* logit, const Scalar* selection_bias,
                    Index num_experts, Index top_k, TokenChoiceScratch<Scalar>& scratch,
                    Scalar* score, ExpertIndex* expert, Scalar* weight) {
  score_logits(rule.score, logit, num_experts, score);
  Scalar* const key = scratch.key.data();
  kernels::row_kernels<Scalar>().selection_keys(logit, score, selection_bias, num_experts, key);
  if (rule.groups.active())
    detail::mask_groups(rule.groups, num_experts, key, scratch.group_score.data(),
                        scratch.kept.data());
  select_top_k(key, num_experts, top_k, expert);

  for (Index k = detail::limited_choices(rule.limit, score, expert, top_k); k < top_k; ++k)
    expert[k] = no_expert;
  weigh_experts(rule, logit, score, num_experts, expert, top_k, weight);
}

}  // namespace moe::inline MOE_ABI
