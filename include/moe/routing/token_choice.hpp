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

  TokenChoiceScratch(const RoutingRule& rule, Index num_experts)
      : key(static_cast<std::size_t>(num_experts)),
        group_score(static_cast<std::size_t>(rule.groups.count)),
        kept(static_cast<std::size_t>(rule.groups.kept)) {}
};

namespace detail {

/// Brings K weights to a common sum as the rule says.
template <class Scalar>
void renormalize(const RenormalizationRule& rule, Scalar* weight, Index top_k) noexcept {
  if (rule.kind == Renormalization::none || (top_k == 1 && !rule.at_top_1)) return;
  const auto epsilon = static_cast<Scalar>(rule.epsilon);
  const auto p = static_cast<Scalar>(rule.p);
  const bool is_norm = rule.kind == Renormalization::p_norm;
  Scalar divisor = 0;
  for (Index k = 0; k < top_k; ++k)
    divisor += is_norm ? std::pow(std::fabs(weight[k]), p) : weight[k];
  if (is_norm) divisor = std::pow(divisor, 1 / p);
  if (rule.kind == Renormalization::sum) divisor += epsilon;
  if (rule.kind == Renormalization::clamped_sum) divisor = std::fmax(divisor, epsilon);
  for (Index k = 0; k < top_k; ++k) weight[k] = divisor != 0 ? weight[k] / divisor : Scalar(0);
}

}  // namespace detail

/// Chooses the experts of one token and weighs them.
///
/// Shapes  logit, score, selection_bias (E), expert, weight (K); selection_bias may be null.
/// Values  score is what the rule's score function gives; weight is final.
/// Ties    lower expert index first. An expert with a NaN logit never wins against one without that
///         may be chosen, and has weight 0; a row of NaN selects 0 .. K-1 with weights 0.
/// Throws  nothing; the rule was checked when the router was made.
template <class Scalar>
void choose_experts(const RoutingRule& rule, const Scalar* logit, const Scalar* selection_bias,
                    Index num_experts, Index top_k, TokenChoiceScratch<Scalar>& scratch,
                    Scalar* score, ExpertIndex* expert, Scalar* weight) noexcept {
  score_logits(rule.score, logit, num_experts, score);
  Scalar* const key = scratch.key.data();
  for (Index e = 0; e < num_experts; ++e) {
    const Scalar bias = selection_bias != nullptr ? selection_bias[e] : Scalar(0);
    key[e] = detail::selection_key(std::isnan(logit[e]) ? logit[e] : score[e] + bias);
  }
  if (rule.groups.active())
    detail::mask_groups(rule.groups, num_experts, key, scratch.group_score.data(),
                        scratch.kept.data());
  select_top_k(key, num_experts, top_k, expert);

  for (Index k = 0; k < top_k; ++k) {
    const Scalar z = logit[expert[k]];
    switch (rule.weights_from) {
      case WeightSource::scores:
        weight[k] = score[expert[k]];
        break;
      case WeightSource::softmax_of_chosen:
        weight[k] = z;
        break;
      case WeightSource::sigmoid_of_chosen:
        weight[k] = std::isnan(z) ? Scalar(0) : sigmoid(z);
        break;
      case WeightSource::one:
        weight[k] = std::isnan(z) ? Scalar(0) : Scalar(1);
        break;
    }
  }
  if (rule.weights_from == WeightSource::softmax_of_chosen) softmax(weight, top_k, weight);
  detail::renormalize(rule.renormalization, weight, top_k);
  const auto scale = static_cast<Scalar>(rule.scale);
  for (Index k = 0; k < top_k; ++k) {
    weight[k] *= scale;
    if (!std::isfinite(weight[k])) weight[k] = 0;  // Identity scores of infinite logits.
  }
}

}  // namespace moe::inline MOE_ABI
