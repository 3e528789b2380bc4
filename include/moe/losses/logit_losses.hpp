// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Losses on the router's logits and mean distribution.
#pragma once

#include <cmath>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/losses/token_mask.hpp"

namespace moe::inline MOE_ABI::losses {
namespace detail {

/// log(sum exp(z)) of a row of logits.
template <class Row>
double log_sum_exp(const Row& logits) {
  const double largest = logits.maxCoeff();
  if (!std::isfinite(largest)) return largest;
  return largest + std::log((logits.array() - largest).exp().sum());
}

}  // namespace detail

/// The router z-loss: mean over the tokens that count of log(sum exp(logits))^2. It keeps logits
/// small.
///
/// Values  (ln E)^2 for logits of 0; 0 where no token counts. Not finite where a token that counts
///         has a logit of NaN or +infinity, or none above -infinity.
/// Throws  std::invalid_argument if the routing was made without logits; ShapeError if the mask is
///         not T long. The gradient is with respect to the logits.
/// Source  Zoph et al. (2022), eq. 5, arXiv:2202.08906.
template <class Scalar>
Scalar z_loss(const Routing<Scalar>& routing, TokenMask mask = {},
              std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  moe::detail::check_routing("z_loss", routing);
  detail::check_gradient("z_loss", gradient, routing.tokens(), routing.num_experts);
  const Index counted = detail::count_tokens("z_loss", mask, routing.tokens());
  if (counted == 0) return 0;
  moe::detail::check(routing.logits.size() != 0, "z_loss", "the routing was made without logits");
  double total = 0;
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!detail::counts(mask, t)) continue;
    const Vector<double> logits = routing.logits.row(t).template cast<double>();
    const double value = detail::log_sum_exp(logits);
    total += value * value;
    if (!gradient.wanted()) continue;
    const double slope = 2 * gradient.coefficient / static_cast<double>(counted) * value;
    for (Index e = 0; e < routing.num_experts; ++e)
      gradient.sum(t, e) += static_cast<Scalar>(slope * std::exp(logits[e] - value));
  }
  return static_cast<Scalar>(total / static_cast<double>(counted));
}

/// sum P_e log P_e of the mean distribution over the tokens: the negative of its entropy.
///
/// Values  -ln E at balance, its least; 0 where one expert has all probability or no token counts.
/// Throws  std::invalid_argument if the routing was made without scores; ShapeError if the mask is
///         not T long.
/// Source  llm-baselines `entropy_reg`.
template <class Scalar>
Scalar mean_entropy(const Routing<Scalar>& routing, TokenMask mask = {},
                    std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  detail::check_gradient("mean_entropy", gradient, routing.tokens(), routing.num_experts);
  const BalanceSums sums = detail::balance_sums("mean_entropy", routing, mask);
  Vector<double> slopes = Vector<double>::Zero(sums.num_experts());
  double total = 0;
  for (Index e = 0; e < sums.num_experts() && sums.tokens > 0; ++e) {
    const double p = sums.probabilities[e] / sums.tokens;
    if (!(p > 0)) continue;
    total += p * std::log(p);
    // Without the 1 of log p + 1: what all experts have alike moves no probability.
    slopes[e] = std::log(p) / sums.tokens;
  }
  add_probability_gradient(routing, slopes, gradient, mask);
  return static_cast<Scalar>(total);
}

}  // namespace moe::inline MOE_ABI::losses
