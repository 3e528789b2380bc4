// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Losses that keep the experts evenly used. Values only; each is a function of a Routing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/probabilities.hpp"

namespace moe::inline MOE_ABI::losses {

/// The scale of the load-balancing loss. With c_e the choices of expert e over all slots, c1_e its
/// first choices, and P_e its mean probability over the tokens:
enum class BalanceScale {
  per_choice,    ///< E / (T K) sum c_e P_e,  1 at balance: Megatron, MegaBlocks
  per_token,     ///< E / T     sum c_e P_e,  K at balance: transformers' Mixtral family
  first_choice,  ///< E / T     sum c1_e P_e, 1 at balance: Switch; GShard's code
  gshard_paper,  ///< 1 / (E T) sum c1_e P_e, 1 / E^2 at balance: GShard's text
};

/// Which tokens count: one entry for each, 0 for padding. Empty: all.
using TokenMask = std::span<const std::uint8_t>;

namespace detail {

/// Number of tokens that count; throws ShapeError if the mask is not T long.
inline Index count_tokens(const char* where, TokenMask mask, Index tokens) {
  if (mask.empty()) return tokens;
  moe::detail::check_size(where, "mask.size()", tokens, static_cast<Index>(mask.size()));
  Index count = 0;
  for (const std::uint8_t counts : mask) count += counts != 0 ? 1 : 0;
  return count;
}

inline bool counts(TokenMask mask, Index token) {
  return mask.empty() || mask[static_cast<std::size_t>(token)] != 0;
}

/// log(sum exp(z)) of a row of logits.
template <class Row>
double log_sum_exp(const Row& logits) {
  const double largest = logits.maxCoeff();
  if (!std::isfinite(largest)) return largest;
  return largest + std::log((logits.array() - largest).exp().sum());
}

/// Sums over the tokens of the router's probabilities.
template <class Scalar>
Vector<double> probability_sums(const Routing<Scalar>& routing, TokenMask mask) {
  Vector<double> sums = Vector<double>::Zero(routing.num_experts);  // (E)
  Vector<double> probability(routing.num_experts);                  // (E)
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!counts(mask, t)) continue;
    moe::detail::token_probabilities(routing, t, probability);
    sums += probability;
  }
  return sums;
}

}  // namespace detail

/// Load balancing of Switch and GShard: the product of an expert's share of the choices and its
/// mean probability, summed over the experts.
///
/// Values  1 at balance with the default scale; see BalanceScale. 0 where no token counts. Choices
///         are counted before any drop.
/// Throws  std::invalid_argument if the routing was made without scores; ShapeError if the mask is
///         not T long.
/// Source  Fedus et al. (2021), eq. 4-6, arXiv:2101.03961; Lepikhin et al. (2020),
///         arXiv:2006.16668.
template <class Scalar>
Scalar load_balancing(const Routing<Scalar>& routing, BalanceScale scale = BalanceScale::per_choice,
                      TokenMask mask = {}) {
  constexpr const char* where = "load_balancing";
  moe::detail::check_routing(where, routing);
  const Index counted = detail::count_tokens(where, mask, routing.tokens());
  if (counted == 0) return 0;
  moe::detail::check_has_scores(where, routing);

  const bool first_only =
      scale == BalanceScale::first_choice || scale == BalanceScale::gshard_paper;
  std::vector<Index> choices(static_cast<std::size_t>(routing.num_experts), 0);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < (first_only ? 1 : routing.top_k()) && detail::counts(mask, t); ++k)
      ++choices[static_cast<std::size_t>(routing.experts(t, k))];

  const Vector<double> sums = detail::probability_sums(routing, mask);
  double total = 0;
  for (Index e = 0; e < routing.num_experts; ++e)
    total += static_cast<double>(choices[static_cast<std::size_t>(e)]) * sums[e];
  const auto experts = static_cast<double>(routing.num_experts);
  const auto tokens = static_cast<double>(counted);
  total /= tokens * tokens;
  switch (scale) {
    case BalanceScale::per_choice:
      total *= experts / static_cast<double>(routing.top_k());
      break;
    case BalanceScale::per_token:
    case BalanceScale::first_choice:
      total *= experts;
      break;
    case BalanceScale::gshard_paper:
      total /= experts;
      break;
  }
  return static_cast<Scalar>(total);
}

/// The router z-loss: mean over the tokens of log(sum exp(logits))^2. It keeps logits small.
///
/// Values  (ln E)^2 for logits of 0; 0 where no token counts. Not finite where a token that counts
///         has a logit of NaN or +infinity, or none above -infinity.
/// Throws  std::invalid_argument if the routing was made without logits; ShapeError if the mask is
///         not T long.
/// Source  Zoph et al. (2022), eq. 5, arXiv:2202.08906.
template <class Scalar>
Scalar z_loss(const Routing<Scalar>& routing, TokenMask mask = {}) {
  moe::detail::check_routing("z_loss", routing);
  const Index counted = detail::count_tokens("z_loss", mask, routing.tokens());
  if (counted == 0) return 0;
  moe::detail::check(routing.logits.size() != 0, "z_loss", "the routing was made without logits");
  double total = 0;
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!detail::counts(mask, t)) continue;
    const Vector<double> logits = routing.logits.row(t).template cast<double>();
    const double value = detail::log_sum_exp(logits);
    total += value * value;
  }
  return static_cast<Scalar>(total / static_cast<double>(counted));
}

/// Importance: the squared coefficient of variation of the experts' summed weights, with the
/// population variance, var / (mean^2 + 1e-10).
///
/// Values  0 at balance; 0 where no token counts.
/// Throws  ShapeError if the mask is not T long.
/// Source  Shazeer et al. (2017), eq. 6-7, arXiv:1701.06538; Tensor2Tensor `cv_squared`.
template <class Scalar>
Scalar importance(const Routing<Scalar>& routing, TokenMask mask = {}) {
  moe::detail::check_routing("importance", routing);
  if (detail::count_tokens("importance", mask, routing.tokens()) == 0) return 0;
  Vector<double> sums = Vector<double>::Zero(routing.num_experts);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < routing.top_k() && detail::counts(mask, t); ++k)
      sums[routing.experts(t, k)] += static_cast<double>(routing.weights(t, k));
  const double mean = sums.mean();
  const double variance = (sums.array() - mean).square().mean();
  return static_cast<Scalar>(variance / (mean * mean + 1e-10));
}

}  // namespace moe::inline MOE_ABI::losses
