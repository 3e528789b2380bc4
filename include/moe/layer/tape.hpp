// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a forward leaves for its backward.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/routing/noise.hpp"

namespace moe::inline MOE_ABI {

/// How much of a forward is kept.
enum class TapePolicy {
  keep_all,             ///< further the experts' outputs, which a backward does not need
  keep_preactivations,  ///< the routing, and the experts' values before their activation
  recompute,            ///< the routing: a backward runs the experts again, at a third more
};

/// The options of a forward for its backward, with what this needs of their spans.
class KeptOptions {
 public:
  /// Token ids serve the choice alone, which a tape has.
  void keep(const RouteOptions& options) {
    options_ = options;
    options_.keep_logits = options_.keep_scores = true;
    options_.token_ids = {};
    types_.assign(options.token_types.begin(), options.token_types.end());
    groups_.assign(options.token_groups.begin(), options.token_groups.end());
  }

  /// Valid until the next `keep`.
  RouteOptions view() const noexcept {
    RouteOptions options = options_;
    options.token_types = types_;
    options.token_groups = groups_;
    return options;
  }

 private:
  RouteOptions options_{};
  std::vector<std::int32_t> types_{};   // (T) or empty
  std::vector<std::int32_t> groups_{};  // (T) or empty
};

/// Filled by `SparseMoe::forward` and read by `SparseMoe::backward`. Its memory grows only.
///
/// Shapes  d_logits, d_scored (T, E) and d_weights (T, K) are zero after a forward: before the
///         backward, losses add their gradients with respect to the routing's logits, to the logits
///         that its scores were made of, and to its weights. Where neither scaling nor noise comes
///         between, d_logits and d_scored are the same. Where a NoisyTopKRouter drew noise, `drawn`
///         has it, and d_deviation (T, E) is the gradient with respect to its deviation; that with
///         respect to its noisy logits is d_scored.
template <class Scalar>
struct Tape {
  TapePolicy policy = TapePolicy::keep_preactivations;
  Routing<Scalar> routing{};  // as the layer ran it
  DispatchPlan plan{};
  NoisyLogits<Scalar> drawn{};          // (T, E), or empty
  GrowingMatrix<Scalar> d_logits{};     // (T, E)
  GrowingMatrix<Scalar> d_scored{};     // (T, E)
  GrowingMatrix<Scalar> d_deviation{};  // (T, E), or empty
  GrowingMatrix<Scalar> d_weights{};    // (T, K)

  GrowingMatrix<Scalar> weights{};         // (T, K), after drops
  GrowingMatrix<Scalar> outputs{};         // (N, D), with keep_all, times their weights where these
                                           // act on the output and the bank multiplies by them
  GrowingMatrix<Scalar> d_weights_used{};  // (T, K), after a backward: with respect to `weights`

  // The rest is the layer's.
  const void* layer = nullptr;  // that filled it; none after a backward
  bool through_router = false;  // false: the routing was the caller's
  KeptOptions options{};
  HiddenDropout dropout{};
  HiddenDropout shared_dropout{};
  bool has_sums = false;
  KeptSums<Scalar> sums{};              // (N, sums of a row)
  KeptSums<Scalar> shared_sums{};       // (T * shared experts, sums of a row)
  GrowingMatrix<Scalar> shared_gate{};  // (T, shared experts), where they are gated
};

}  // namespace moe::inline MOE_ABI
