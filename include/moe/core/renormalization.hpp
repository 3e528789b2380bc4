// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How the weights of a token are brought to a common sum.
#pragma once

#include <cmath>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// What the weights of a token are divided by.
enum class Renormalization {
  none,
  sum,          ///< w / (sum + epsilon)
  clamped_sum,  ///< w / max(sum, epsilon)
  p_norm,       ///< w / (sum |w|^p)^(1/p)
};

/// A divisor of 0 leaves weights of 0.
struct RenormalizationRule {
  Renormalization kind = Renormalization::none;
  double epsilon = 0;
  double p = 1;
  bool at_top_1 = true;  ///< false: a single choice keeps its weight as it is
  bool after_drop =
      false;  ///< true: over the choices that the capacity kept, when the plan is made

  friend bool operator==(const RenormalizationRule&, const RenormalizationRule&) = default;
};

namespace detail {

/// Whether the weights of a token with K slots are divided at all.
inline bool renormalizes(const RenormalizationRule& rule, Index top_k) noexcept {
  return rule.kind != Renormalization::none && (top_k != 1 || rule.at_top_1);
}

/// Throws std::invalid_argument if the rule makes no sense.
inline void check_renormalization(const char* where, const RenormalizationRule& rule) {
  check(std::isfinite(rule.epsilon) && rule.epsilon >= 0, where,
        "renormalization.epsilon must be finite and not negative");
  check(std::isfinite(rule.p) && rule.p > 0, where,
        "renormalization.p must be finite and positive");
}

/// What n weights of a token are divided by.
template <class Scalar>
Scalar divisor_of(const RenormalizationRule& rule, const Scalar* weight, Index n) noexcept {
  const auto epsilon = static_cast<Scalar>(rule.epsilon);
  const auto p = static_cast<Scalar>(rule.p);
  const bool is_norm = rule.kind == Renormalization::p_norm;
  Scalar largest = 1;  // Powers are of weights over the largest, since those of small ones vanish.
  if (is_norm && p != 1) {
    largest = 0;
    for (Index k = 0; k < n; ++k) largest = std::fmax(largest, std::fabs(weight[k]));
    if (!(largest > 0)) largest = 1;
  }
  Scalar divisor = 0;
  for (Index k = 0; k < n; ++k)
    divisor += is_norm ? std::pow(std::fabs(weight[k]) / largest, p) : weight[k];
  if (is_norm) divisor = largest * std::pow(divisor, 1 / p);
  if (rule.kind == Renormalization::sum) divisor += epsilon;
  if (rule.kind == Renormalization::clamped_sum) divisor = std::fmax(divisor, epsilon);
  return divisor;
}

/// Divides n weights of a token with K slots as the rule says.
template <class Scalar>
void renormalize(const RenormalizationRule& rule, Index top_k, Scalar* weight, Index n) noexcept {
  if (!renormalizes(rule, top_k)) return;
  const Scalar divisor = divisor_of(rule, weight, n);
  for (Index k = 0; k < n; ++k) weight[k] = divisor != 0 ? weight[k] / divisor : Scalar(0);
}

/// The reverse of `renormalize`: from the gradient with respect to its results to that with respect
/// to the weights that it was given.
///
/// Shapes  weight, before they are divided, d_result, d_weight (n); d_weight may be d_result.
/// Values  0 where the divisor was.
template <class Scalar>
void renormalize_gradient(const RenormalizationRule& rule, Index top_k, const Scalar* weight,
                          const Scalar* d_result, Index n, Scalar* d_weight) noexcept {
  if (!renormalizes(rule, top_k)) {
    for (Index k = 0; k < n; ++k) d_weight[k] = d_result[k];
    return;
  }
  const auto p = static_cast<Scalar>(rule.p);
  const Scalar divisor = divisor_of(rule, weight, n);
  // A clamped divisor does not move with the weights.
  const bool moves =
      rule.kind != Renormalization::clamped_sum || divisor > static_cast<Scalar>(rule.epsilon);
  Scalar product = 0;  // of results and their gradients, times the divisor
  for (Index k = 0; k < n; ++k) product += weight[k] * d_result[k];
  for (Index k = 0; k < n; ++k) {
    if (divisor == 0) {
      d_weight[k] = 0;
      continue;
    }
    Scalar slope = moves ? Scalar(1) : Scalar(0);  // of the divisor in this weight
    if (rule.kind == Renormalization::p_norm) {
      slope = weight[k] == 0
                  ? Scalar(0)
                  : std::copysign(std::pow(std::fabs(weight[k]) / divisor, p - 1), weight[k]);
    }
    d_weight[k] = (d_result[k] - slope * (product / divisor)) / divisor;
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
