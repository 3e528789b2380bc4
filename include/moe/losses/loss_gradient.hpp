// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Where a loss adds its gradient.
#pragma once

#include <cmath>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/losses/probabilities.hpp"
#include "moe/losses/token_mask.hpp"

namespace moe::inline MOE_ABI::losses {

/// Asks a loss to add `coefficient` times its gradient to `sum`, so that several losses share one
/// matrix. The value that the loss returns has no coefficient.
///
/// Shapes  sum (T, E), the gradient with respect to Routing::logits, or (T, K), that with respect
///         to Routing::weights: each loss says which. Without a matrix nothing is added.
/// Values  counts of choices are constants: they have no gradient. Tokens that do not count get
///         none. The selection bias gets none.
/// Throws  ShapeError, from the loss, if sum has another shape.
template <class Scalar>
struct LossGradient {
  MatrixView<Scalar> sum{};
  double coefficient = 1;

  bool wanted() const noexcept { return sum.data() != nullptr; }
};

namespace detail {

inline void check_coefficient(const char* where, double coefficient) {
  moe::detail::check(std::isfinite(coefficient), where, "the gradient's coefficient is not finite");
}

template <class Scalar>
void check_gradient(const char* where, const LossGradient<Scalar>& gradient, Index rows,
                    Index cols) {
  if (!gradient.wanted()) return;
  moe::detail::check_size(where, "gradient.sum.rows()", rows, gradient.sum.rows());
  moe::detail::check_size(where, "gradient.sum.cols()", cols, gradient.sum.cols());
  check_coefficient(where, gradient.coefficient);
}

}  // namespace detail

/// From the gradient with respect to each expert's summed probability to that with respect to the
/// logits: for losses of one's own that are functions of `BalanceSums::probabilities`.
///
/// Shapes  slopes (E), dL / d probabilities[e], the same for every token; gradient.sum (T, E).
/// Values  through the softmax where scores are one, or the logits themselves; through the division
///         by their sum, and the score function, where they are not.
/// Throws  ShapeError if a size disagrees; std::invalid_argument if the routing was made without
///         scores.
template <class Scalar>
void add_probability_gradient(const Routing<Scalar>& routing, const Vector<double>& slopes,
                              const LossGradient<Scalar>& gradient, TokenMask mask = {}) {
  constexpr const char* where = "add_probability_gradient";
  const Index experts = routing.num_experts;
  detail::check_gradient(where, gradient, routing.tokens(), experts);
  moe::detail::check_size(where, "slopes.size()", experts, slopes.size());
  moe::detail::check_routing(where, routing);
  if (!gradient.wanted() || detail::count_tokens(where, mask, routing.tokens()) == 0) return;
  moe::detail::check_has_scores(where, routing);
  Vector<double> probability(experts);  // (E)
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!detail::counts(mask, t)) continue;
    moe::detail::token_probabilities(routing, t, probability);
    const double mean = slopes.dot(probability);
    Scalar* const row = gradient.sum.row(t);
    for (Index e = 0; e < experts; ++e) {
      const double slope =
          moe::detail::probability_slope(routing, t, e, probability[e]) * (slopes[e] - mean);
      row[e] += static_cast<Scalar>(gradient.coefficient * slope);
    }
  }
}

}  // namespace moe::inline MOE_ABI::losses
