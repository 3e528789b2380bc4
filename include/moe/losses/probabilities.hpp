// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A token's scores as a distribution over the experts.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI::detail {

/// The scores of one token as probabilities, in double. Softmax scores are probabilities already;
/// identity scores pass through a softmax; others are divided by their sum, since a model could
/// otherwise lower a loss by shrinking all of them.
///
/// Shapes  probability (E), which the caller has sized.
/// Values  a row without any positive score gives zeros.
template <class Scalar>
void token_probabilities(const Routing<Scalar>& routing, Index token, Vector<double>& probability) {
  MOE_ASSERT(probability.size() == routing.num_experts);
  // Element by element: g++ 12 at -O3 sees a use after free in Eigen's resizing assignment.
  for (Index e = 0; e < routing.num_experts; ++e)
    probability[e] = static_cast<double>(routing.scores(token, e));
  if (routing.score_function == ScoreFunction::identity) {
    softmax(probability.data(), probability.size(), probability.data());
  } else if (routing.score_function != ScoreFunction::softmax) {
    probability /= probability.sum() + 1e-20;
  }
}

/// The slope of an expert's probability p in its own logit beside what all probabilities share:
/// dp_i / dz_j = slope_j (delta_ij - p_i).
template <class Scalar>
double probability_slope(const Routing<Scalar>& routing, Index token, Index expert, double p) {
  if (routing.score_function == ScoreFunction::softmax ||
      routing.score_function == ScoreFunction::identity)
    return p;
  const auto s = static_cast<double>(routing.scores(token, expert));
  return s > 0 ? p / s * score_slope(routing.score_function, s) : 0;
}

/// Throws std::invalid_argument if there are tokens but no scores.
template <class Scalar>
void check_has_scores(const char* where, const Routing<Scalar>& routing) {
  check(routing.tokens() == 0 || routing.scores.size() != 0, where,
        "the routing was made without scores");
}

}  // namespace moe::inline MOE_ABI::detail
