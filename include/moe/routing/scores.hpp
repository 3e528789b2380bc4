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
void softmax(const Scalar* logit, Index n, Scalar* score) noexcept {
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  Scalar largest = -infinity;
  for (Index i = 0; i < n; ++i)
    if (logit[i] > largest) largest = logit[i];
  Scalar sum = 0;
  for (Index i = 0; i < n; ++i) {
    const Scalar z = logit[i];
    Scalar e = 0;
    if (largest == infinity) {
      e = z == infinity ? Scalar(1) : Scalar(0);
    } else if (z > -infinity) {  // False for NaN, too.
      e = std::exp(z - largest);
    }
    score[i] = e;
    sum += e;
  }
  if (sum > 0)
    for (Index i = 0; i < n; ++i) score[i] /= sum;
}

/// Scores of one token's logits; `score` may be `logit` itself.
///
/// Values  A NaN logit scores 0, with every function.
template <class Scalar>
void score_logits(ScoreFunction function, const Scalar* logit, Index n, Scalar* score) noexcept {
  if (function == ScoreFunction::softmax) return softmax(logit, n, score);
  for (Index i = 0; i < n; ++i) {
    const Scalar z = logit[i];
    if (std::isnan(z)) {
      score[i] = 0;
    } else if (function == ScoreFunction::sigmoid) {
      score[i] = sigmoid(z);
    } else if (function == ScoreFunction::sqrt_softplus) {
      score[i] = std::sqrt(softplus(z));
    } else {
      score[i] = z;
    }
  }
}

}  // namespace moe::inline MOE_ABI
