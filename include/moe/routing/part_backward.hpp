// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a router within a router, which routed rows of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/router_backward.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// Throws  as check_router_call, and std::invalid_argument if the call has what only the inner
///         router could know the meaning of.
template <class Scalar>
void check_outer_call(const char* where, const RouterBackward<Scalar>& call, Index num_experts,
                      Index d_model) {
  check_router_call(where, call, num_experts, d_model);
  check_no_inputs(where, call.inputs);
  check(call.d_deviation.empty(), where, "the router keeps no deviation");
}

/// The gradient with respect to the weights as they were routed: that of losses, and the reverse of
/// `final_weights` on that with respect to the weights as they were used.
///
/// Shapes  result (T, K).
template <class Scalar>
Matrix<Scalar> gradient_of_routed(const RouterBackward<Scalar>& call) {
  const Routing<Scalar>& routing = call.routing;
  const Index top_k = routing.top_k();
  Matrix<Scalar> result = Matrix<Scalar>::Zero(routing.tokens(), top_k);
  if (!call.d_routed.empty()) result = call.d_routed.map();
  if (call.d_weights.empty()) return result;
  const bool after_drop = routing.renormalization.after_drop;
  const Scalar scale = after_drop ? static_cast<Scalar>(routing.scale_after_drop) : Scalar(1);
  Vector<Scalar> weight(top_k);
  Vector<Scalar> slope(top_k);
  for (Index t = 0; t < routing.tokens(); ++t) {
    const auto is_kept = [&](Index k) {
      return call.plan.row_of[static_cast<std::size_t>(t * top_k + k)] != DispatchPlan::no_row;
    };
    for (Index k = 0; k < top_k; ++k) {
      weight[k] = is_kept(k) ? routing.weights(t, k) : Scalar(0);
      slope[k] = is_kept(k) ? scale * call.d_weights(t, k) : Scalar(0);
    }
    if (after_drop)
      renormalize_gradient(routing.renormalization, top_k, weight.data(), slope.data(), top_k,
                           slope.data());
    for (Index k = 0; k < top_k; ++k)
      if (is_kept(k)) result(t, k) += slope[k];
  }
  return result;
}

/// What the backward of an inner router works on: rows that it routed itself, with all that goes
/// through the weights in `d_routed`.
template <class Scalar>
struct PartBackward {
  RouteOptions options;
  Routing<Scalar> routing;
  DispatchPlan plan;
  Matrix<Scalar> x;         // (N, D)
  Matrix<Scalar> dx;        // (N, D)
  Matrix<Scalar> d_routed;  // (N, K), passed on where the outer router got anything of the kind
  Matrix<Scalar> d_logits;  // (N, E)
  Matrix<Scalar> d_scored;  // (N, E)

  /// Zeros, with the rule of `outer`, for an inner router of these sizes.
  PartBackward(const RouterBackward<Scalar>& outer, Index rows, Index num_experts, Index top_k)
      : options(outer.options),
        x(Matrix<Scalar>::Zero(rows, outer.x.cols())),
        dx(Matrix<Scalar>::Zero(rows, outer.x.cols())),
        d_routed(Matrix<Scalar>::Zero(rows, top_k)),
        d_logits(Matrix<Scalar>::Zero(rows, num_experts)),
        d_scored(Matrix<Scalar>::Zero(rows, num_experts)),
        has_choices_(outer.has_choices()) {
    options.token_ids = options.token_types = options.token_groups = {};
    routing.resize(rows, num_experts, top_k, {});
    routing.experts.setConstant(no_expert);
    routing.weights.setZero();
    routing.score_function = outer.routing.score_function;
    routing.weight_target = outer.routing.weight_target;
    routing.input_scale = outer.routing.input_scale;
    routing.renormalization = outer.routing.renormalization;
    routing.scale_after_drop = outer.routing.scale_after_drop;
    plan.row_of.resize(static_cast<std::size_t>(rows * top_k), 0);  // Drops are behind already.
  }

  RouterBackward<Scalar> call(bool frozen) {
    RouterBackward<Scalar> inner{.x = x,
                                 .options = options,
                                 .routing = routing,
                                 .plan = plan,
                                 .d_weights = {},
                                 .d_logits = d_logits,
                                 .dx = dx,
                                 .d_scored = d_scored,
                                 .frozen = frozen};
    if (has_choices_) inner.d_routed = d_routed;
    return inner;
  }

 private:
  bool has_choices_;
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI
