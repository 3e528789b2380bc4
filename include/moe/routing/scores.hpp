// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Score functions of one token's logits, defined for every input.
#pragma once

#include <cmath>
#include <limits>

#include "moe/core/config.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI {

/// s = 1 / (1 + exp(-z)), without overflow.
template <class Scalar>
Scalar sigmoid(Scalar z) noexcept {
  if (z >= 0) return 1 / (1 + std::exp(-z));
  const Scalar e = std::exp(z);
  return e / (1 + e);
}

/// log(1 + exp(z)), without overflow.
template <class Scalar>
Scalar softplus(Scalar z) noexcept {
  return std::fmax(z, Scalar(0)) + std::log1p(std::exp(-std::fabs(z)));
}

/// Softmax of n logits; `score` may be `logit` itself.
///
/// Values  A NaN logit scores 0 and does not disturb the others. Logits of +infinity share the
///         weight equally. Where no logit is above -infinity, every score is 0.
template <class Scalar>
void softmax(const Scalar* logit, Index n, Scalar* score) {
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  const auto& kernels = kernels::row_kernels<Scalar>();
  const Scalar largest = kernels.largest(logit, n);
  Scalar sum = 0;
  if (std::isfinite(largest)) {
    sum = kernels.exponentials(logit, n, largest, score);
  } else {
    for (Index i = 0; i < n; ++i) {
      score[i] = largest == infinity && logit[i] == infinity ? Scalar(1) : Scalar(0);
      sum += score[i];
    }
  }
  if (sum > 0) kernels.divide_all(score, n, sum);
}

/// Scores of one token's logits; `score` may be `logit` itself.
///
/// Values  A NaN logit scores 0, with every function.
template <class Scalar>
void score_logits(ScoreFunction function, const Scalar* logit, Index n, Scalar* score) {
  if (function == ScoreFunction::softmax) return softmax(logit, n, score);
  if (function == ScoreFunction::sigmoid)
    return kernels::row_kernels<Scalar>().sigmoids(logit, n, score);
  for (Index i = 0; i < n; ++i) {
    const Scalar z = logit[i];
    if (std::isnan(z)) {
      score[i] = 0;
    } else if (function == ScoreFunction::sqrt_softplus) {
      score[i] = std::sqrt(softplus(z));
    } else {
      score[i] = z;
    }
  }
}

/// ds/dz of a score that depends on its own logit alone, from the score.
template <class Scalar>
Scalar score_slope(ScoreFunction function, Scalar score) noexcept {
  switch (function) {
    case ScoreFunction::sigmoid:
      return score * (1 - score);
    case ScoreFunction::sqrt_softplus:  // sigmoid(z) / (2 s), and sigmoid(z) = 1 - exp(-s^2)
      return score > 0 ? -std::expm1(-score * score) / (2 * score) : Scalar(0);
    default:
      return 1;
  }
}

}  // namespace moe::inline MOE_ABI
