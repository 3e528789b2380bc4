// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Everything that one forward pass writes beside its output.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// Reused from call to call; after a forward, `routing` and `plan` tell what happened. A routing
/// that the caller supplied is not copied here. Concurrent forwards use a workspace each.
template <class Scalar>
struct Workspace {
  Routing<Scalar> routing;
  DispatchPlan plan;
  GrowingMatrix<Scalar> hidden;   // (T, D), x with jitter, in training only
  GrowingMatrix<Scalar> weights;  // (T, K), where a capacity or the routing changes them
  GrowingMatrix<Scalar> rows;     // (N, D), expert outputs by row of the plan, times their weights
                                  // where the bank multiplies by them
  DispatchPlan shared_plan;       // of the shared experts
  GrowingMatrix<Scalar> shared_rows;  // (T * shared experts, D)
  GrowingMatrix<Scalar> shared_gate;  // (T, shared experts), where they are gated
  Scratch scratch;
};

}  // namespace moe::inline MOE_ABI
