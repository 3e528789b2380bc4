// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Everything that one forward pass writes beside its output.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
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
  Matrix<Scalar> hidden;       // (T, D), x with jitter, in training only
  Matrix<Scalar> weights;      // (T, K), where a capacity or the routing changes them
  Matrix<Scalar> rows;         // (N, D), expert outputs by row of the plan
  DispatchPlan shared_plan;    // of the shared experts
  Matrix<Scalar> shared_rows;  // (T * shared experts, D)
  Matrix<Scalar> shared_gate;  // (T, shared experts), where they are gated
  Scratch scratch;
};

}  // namespace moe::inline MOE_ABI
