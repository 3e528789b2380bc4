// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Gradients of a bank of feed-forward experts.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/packed_experts.hpp"

namespace moe::inline MOE_ABI {

/// The gradients of a FeedForwardExperts' weights and biases, each where the bank has the weight
/// that it belongs to, so that an optimiser works on both element by element.
///
/// Values  a backward adds to them. Where panels are filled up, they stay zero.
template <class ScalarT, bool gated>
class ExpertGradients {
 public:
  using Scalar = ScalarT;

  /// Zeros, for a bank of these sizes; `FeedForwardExperts::gradients` makes them.
  explicit ExpertGradients(const ExpertsConfig& config) : values_("ExpertGradients", config) {}

  void set_zero() noexcept {
    for (const std::span<Scalar> part : values()) std::fill(part.begin(), part.end(), Scalar(0));
  }

  /// A copy of one expert's, in the shapes of its matrices.
  ///
  /// Throws  std::invalid_argument if `e` is out of range.
  ExpertMatrices<Scalar> expert(Index e) const { return values_.get("ExpertGradients::expert", e); }

  /// All of them: gate and up, down, their biases; as `FeedForwardExperts::values` has the weights.
  std::array<std::span<Scalar>, 4> values() noexcept { return values_.values(); }

  const ExpertsConfig& config() const noexcept { return values_.config; }
  detail::PackedExperts<Scalar, gated>& packed() noexcept { return values_; }

 private:
  detail::PackedExperts<Scalar, gated> values_;
};

}  // namespace moe::inline MOE_ABI
