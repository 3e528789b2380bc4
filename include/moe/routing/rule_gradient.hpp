// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The reverse of weighing experts by a rule.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/token_choice.hpp"

namespace moe::inline MOE_ABI {

/// Memory for `add_rule_gradient`, one for each thread.
template <class Scalar>
struct RuleGradientScratch {
  std::vector<Scalar> raw;     // (K), weights before renormalisation
  std::vector<Scalar> chosen;  // (K), softmax of the chosen logits, before some weights become 0
  std::vector<Scalar> slope;   // (K)

  RuleGradientScratch() = default;
  explicit RuleGradientScratch(Index top_k) { resize(top_k); }

  /// Memory is reused.
  void resize(Index top_k) {
    raw.resize(static_cast<std::size_t>(top_k));
    chosen.resize(static_cast<std::size_t>(top_k));
    slope.resize(static_cast<std::size_t>(top_k));
  }
};

namespace detail {

/// Adds the gradient with respect to the logits where that with respect to the scores of the chosen
/// is `slope`.
///
/// Shapes  logit, score, d_logit (E), expert, slope (count).
template <class Scalar>
void add_score_gradient(ScoreFunction function, const Scalar* logit, const Scalar* score,
                        Index num_experts, const ExpertIndex* expert, const Scalar* slope,
                        Index count, Scalar* d_logit) noexcept {
  if (function == ScoreFunction::softmax) {
    Scalar shared = 0;
    for (Index k = 0; k < count; ++k) shared += slope[k] * score[expert[k]];
    for (Index e = 0; e < num_experts; ++e) d_logit[e] -= score[e] * shared;
    for (Index k = 0; k < count; ++k) d_logit[expert[k]] += score[expert[k]] * slope[k];
    return;
  }
  for (Index k = 0; k < count; ++k)
    if (!std::isnan(logit[expert[k]]))
      d_logit[expert[k]] += slope[k] * score_slope(function, score[expert[k]]);
}

}  // namespace detail

/// From the gradient with respect to a token's weights to that with respect to its logits, which is
/// added to `d_logit`: the reverse of `weigh_experts`, and of renormalisation after the drop where
/// the rule asks for that. Neither the choice nor the selection bias has a gradient.
///
/// Shapes  logit, score, d_logit (E), expert, d_weight (K), kept (K), whether the capacity kept the
///         choice, or null where it kept all.
/// Values  a choice that was dropped has weight 0 and passes nothing on, but still takes part in a
///         renormalisation before the drop. With softmax scores over their sum, without epsilon,
///         experts that were not chosen get 0, but for rounding.
/// Source  the rules' own; checked against finite differences.
template <class Scalar>
void add_rule_gradient(const RoutingRule& rule, const Scalar* logit, const Scalar* score,
                       Index num_experts, const ExpertIndex* expert, Index top_k,
                       const Scalar* d_weight, const bool* kept,
                       RuleGradientScratch<Scalar>& scratch, Scalar* d_logit) {
  Scalar* const raw = scratch.raw.data();
  Scalar* const chosen = scratch.chosen.data();
  Scalar* const slope = scratch.slope.data();
  const bool after_drop = rule.renormalization.after_drop;
  const auto is_kept = [&](Index k) { return kept == nullptr || kept[k]; };

  Index used = 0;
  for (; used < top_k && expert[used] != no_expert; ++used)
    chosen[used] = detail::raw_weight(rule.weights_from, logit[expert[used]], score[expert[used]]);
  if (rule.weights_from == WeightSource::softmax_of_chosen) softmax(chosen, used, chosen);
  const auto has_weight = [&](Index k) {
    return expert[k] < num_experts - rule.weightless_experts && (!after_drop || is_kept(k));
  };
  const bool scales =
      after_drop || rule.scales_renormalized || !detail::renormalizes(rule.renormalization, top_k);
  const Scalar scale = scales ? static_cast<Scalar>(rule.scale) : Scalar(1);
  for (Index k = 0; k < used; ++k) {
    raw[k] = has_weight(k) ? chosen[k] : Scalar(0);
    slope[k] = is_kept(k) && std::isfinite(raw[k]) ? scale * d_weight[k] : Scalar(0);
  }
  detail::renormalize_gradient(rule.renormalization, top_k, raw, slope, used, slope);
  for (Index k = 0; k < used; ++k)
    if (!has_weight(k)) slope[k] = 0;

  switch (rule.weights_from) {
    case WeightSource::scores:
      detail::add_score_gradient(rule.score, logit, score, num_experts, expert, slope, used,
                                 d_logit);
      return;
    case WeightSource::softmax_of_chosen: {
      Scalar shared = 0;
      for (Index k = 0; k < used; ++k) shared += slope[k] * chosen[k];
      for (Index k = 0; k < used; ++k) d_logit[expert[k]] += chosen[k] * (slope[k] - shared);
      return;
    }
    case WeightSource::sigmoid_of_chosen:
      for (Index k = 0; k < used; ++k)
        if (!std::isnan(chosen[k]))
          d_logit[expert[k]] += slope[k] * score_slope(ScoreFunction::sigmoid, chosen[k]);
      return;
    case WeightSource::one:
      return;
  }
}

}  // namespace moe::inline MOE_ABI
