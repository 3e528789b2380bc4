// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a forward leaves for its backward.
#pragma once

#include <cstddef>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// How much of a forward is kept.
enum class TapePolicy {
  keep_preactivations,  ///< the routing, and the experts' values before their activation
  recompute,            ///< the routing: a backward runs the experts again, at a third more
};

/// Filled by `SparseMoe::forward` and read by `SparseMoe::backward`. Its memory grows only. Neither
/// gathered rows nor the experts' outputs are kept.
///
/// Shapes  d_logits (T, E) and d_weights (T, K) are zero after a forward: before the backward,
///         losses add their gradients with respect to the routing's logits and weights.
template <class Scalar>
struct Tape {
  TapePolicy policy = TapePolicy::keep_preactivations;
  Routing<Scalar> routing{};  // as the layer ran it
  DispatchPlan plan{};
  GrowingMatrix<Scalar> d_logits{};   // (T, E)
  GrowingMatrix<Scalar> d_weights{};  // (T, K)

  // The rest is the layer's.
  const void* layer = nullptr;  // that filled it; none after a backward
  RouteOptions options{};
  bool has_sums = false;
  GrowingMatrix<Scalar> weights{};      // (T, K), after drops
  AlignedBuffer<Scalar> sums{};         // (N, sums of a row)
  AlignedBuffer<Scalar> shared_sums{};  // (T * shared experts, sums of a row)
  GrowingMatrix<Scalar> shared_gate{};  // (T, shared experts), where they are gated
};

}  // namespace moe::inline MOE_ABI
