// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a layer did with a golden case's input, compared part by part.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <moe/moe.hpp>

#include "conformance/comparison.hpp"

namespace conformance {

template <class Scalar>
struct Outcome {
  moe::Routing<Scalar> routing;
  moe::DispatchPlan plan;
  Matrix<Scalar> weights;  // (T, K), 0 for dropped choices
  Matrix<Scalar> y;        // (T, D)
};

/// Runs a layer by its own router.
template <class Layer, class Scalar = typename Layer::Scalar>
Outcome<Scalar> run_layer(const Layer& layer, const Matrix<Scalar>& x,
                          moe::RouteOptions options = {}) {
  Outcome<Scalar> outcome;
  outcome.y.resize(x.rows(), x.cols());
  moe::Workspace<Scalar> workspace;
  outcome.routing = layer.forward(x, outcome.y, workspace, options);
  outcome.plan = workspace.plan;
  moe::final_weights(outcome.routing, outcome.plan, outcome.weights);
  return outcome;
}

/// Runs a layer by a routing and a plan that were made apart.
template <class Layer, class Scalar = typename Layer::Scalar>
void run_planned(const Layer& layer, const Matrix<Scalar>& x, Outcome<Scalar>& outcome) {
  outcome.y.resize(x.rows(), x.cols());
  moe::Workspace<Scalar> workspace;
  layer.forward(x, outcome.routing, outcome.plan, outcome.y, workspace);
  moe::final_weights(outcome.routing, outcome.plan, outcome.weights);
}

template <class Scalar>
Matrix<Scalar> dense_weights(const moe::Routing<Scalar>& routing,
                             const std::type_identity_t<Matrix<Scalar>>& weights) {
  Matrix<Scalar> dense = Matrix<Scalar>::Zero(routing.tokens(), routing.num_experts);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < routing.top_k(); ++k)
      if (routing.experts(t, k) != moe::no_expert) dense(t, routing.experts(t, k)) = weights(t, k);
  return dense;
}

/// The drops of a plan, in the forms that the files have.
template <class Scalar>
void compare_drops(const Outcome<Scalar>& outcome, Comparison& comparison) {
  const moe::DispatchPlan& plan = outcome.plan;
  Matrix<std::int64_t> kept(plan.tokens, plan.top_k);
  for (Index i = 0; i < kept.size(); ++i)
    kept.data()[i] = plan.row_of[static_cast<std::size_t>(i)] != moe::DispatchPlan::no_row ? 1 : 0;
  if (comparison.expects("kept_mask")) comparison.compare_exactly("kept_mask", kept);
  if (comparison.expects("dropped")) {
    Matrix<std::int64_t> dropped(static_cast<Index>(plan.dropped.size()), 2);
    for (Index i = 0; i < dropped.rows(); ++i) {
      dropped(i, 0) = plan.dropped[static_cast<std::size_t>(i)].token;
      dropped(i, 1) = plan.dropped[static_cast<std::size_t>(i)].slot;
    }
    comparison.compare_exactly("dropped", dropped);
  }
  Matrix<std::int64_t> before(plan.num_experts, 1);
  Matrix<std::int64_t> after(plan.num_experts, 1);
  const std::vector<Index> load = moe::metrics::expert_load(outcome.routing);
  for (Index e = 0; e < plan.num_experts; ++e) {
    before(e, 0) = load[static_cast<std::size_t>(e)];
    after(e, 0) = plan.rows_of(e);
  }
  if (comparison.expects("tokens_per_expert"))
    comparison.compare_exactly("tokens_per_expert", before);
  if (comparison.expects("tokens_per_expert_kept"))
    comparison.compare_exactly("tokens_per_expert_kept", after);
}

/// What every case of a token-choice family has. `weight_scale` is a factor of our weights that the
/// reference applies to the experts' outputs.
template <class Scalar>
void compare_outcome(const Outcome<Scalar>& outcome, Comparison& comparison,
                     Scalar weight_scale = 1) {
  comparison.compare("router_logits", outcome.routing.logits);
  comparison.compare_exactly("topk_indices", outcome.routing.experts);
  const Matrix<Scalar> weights = outcome.weights / weight_scale;
  comparison.compare("topk_weights", weights);
  comparison.compare("combine_weights", dense_weights(outcome.routing, weights));
  compare_drops(outcome, comparison);
  comparison.compare_output(outcome.y);
}

}  // namespace conformance
