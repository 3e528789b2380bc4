// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a router by logits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/rule_gradient.hpp"

namespace moe::inline MOE_ABI {

/// The gradients of what a TopKRouter has learnt. A backward adds to them.
///
/// Shapes  weight (E, D); bias (E), or empty where the router has none.
template <class Scalar>
struct RouterGradients {
  Matrix<Scalar> weight{};  // (E, D)
  Vector<Scalar> bias{};    // (E)

  void set_zero() {
    weight.setZero();
    bias.setZero();
  }
};

/// What a router's backward is given and what it gives.
///
/// Shapes  x (T, D), options and routing: those of the route; plan: the one that the layer made of
///         the routing; d_weights (T, K), with respect to the weights as the layer used them, after
///         drops; d_routed (T, K), that of losses with respect to Routing::weights; d_logits (T,
///         E), that of losses with respect to Routing::logits, to which both are added; dx (T, D),
///         which is added to.
template <class Scalar>
struct RouterBackward {
  MatrixView<const Scalar> x;
  const RouteOptions& options;
  const Routing<Scalar>& routing;
  const DispatchPlan& plan;
  MatrixView<const Scalar> d_weights;
  MatrixView<const Scalar> d_routed;
  MatrixView<Scalar> d_logits;
  MatrixView<Scalar> dx;
};

namespace detail {

/// Adds the gradients with respect to the logits that come through the weights, token by token.
template <class Scalar>
void add_rule_gradients(const RoutingRule& rule, const RouterBackward<Scalar>& call) {
  const Routing<Scalar>& routing = call.routing;
  const Index top_k = routing.top_k();
  RoutingRule as_routed = rule;  // Where weights are finished after the drop, they are not yet.
  if (rule.renormalization.after_drop) {
    as_routed.renormalization = {};
    as_routed.scale = 1;
  }
  parallel::for_each_block(routing.tokens(), router_block_tokens, [&](Index begin, Index end) {
    RuleGradientScratch<Scalar> scratch(top_k);
    const auto kept = std::make_unique<bool[]>(static_cast<std::size_t>(top_k));
    for (Index t = begin; t < end; ++t) {
      for (Index k = 0; k < top_k; ++k)
        kept[static_cast<std::size_t>(k)] =
            call.plan.row_of[static_cast<std::size_t>(t * top_k + k)] != DispatchPlan::no_row;
      add_rule_gradient(rule, row_data(routing.logits, t), row_data(routing.scores, t),
                        routing.num_experts, row_data(routing.experts, t), top_k,
                        call.d_weights.row(t), kept.get(), scratch, call.d_logits.row(t));
      add_rule_gradient(as_routed, row_data(routing.logits, t), row_data(routing.scores, t),
                        routing.num_experts, row_data(routing.experts, t), top_k,
                        call.d_routed.row(t), nullptr, scratch, call.d_logits.row(t));
    }
  });
}

/// weight (E, D) += d_logits^T x. One task sums up all tokens, in order, for some columns.
template <class Scalar>
void add_weight_gradient(MatrixView<const Scalar> d_logits, MatrixView<const Scalar> x,
                         Matrix<Scalar>& weight) {
  constexpr Index block = 64;
  const Index tokens = x.rows();
  const Matrix<Scalar> by_expert = d_logits.map().transpose();  // (E, T)
  parallel::for_each_block(x.cols(), block, [&](Index begin, Index end) {
    const auto& kernels = kernels::row_kernels<Scalar>();
    std::vector<const Scalar*> rows(static_cast<std::size_t>(tokens));
    for (Index t = 0; t < tokens; ++t) rows[static_cast<std::size_t>(t)] = x.row(t) + begin;
    Scalar sum[block];
    for (Index e = 0; e < weight.rows(); ++e) {
      kernels.weighted_sum(rows.data(), row_data(by_expert, e), tokens, end - begin, sum);
      for (Index d = begin; d < end; ++d) weight(e, d) += sum[d - begin];
    }
  });
}

/// dx (T, D) += scale d_logits weight, where `scale` (D) of a token is what jitter made of 1s, or
/// nothing.
template <class Scalar>
void add_input_gradient(MatrixView<const Scalar> d_logits, const Matrix<Scalar>& weight,
                        MatrixView<const Scalar> scale, MatrixView<Scalar> dx) {
  std::vector<const Scalar*> rows(static_cast<std::size_t>(weight.rows()));
  for (Index e = 0; e < weight.rows(); ++e) rows[static_cast<std::size_t>(e)] = row_data(weight, e);
  parallel::for_each_block(dx.rows(), router_block_tokens, [&](Index begin, Index end) {
    const auto& kernels = kernels::row_kernels<Scalar>();
    std::vector<Scalar> sum(static_cast<std::size_t>(dx.cols()));
    for (Index t = begin; t < end; ++t) {
      kernels.weighted_sum(rows.data(), d_logits.row(t), weight.rows(), dx.cols(), sum.data());
      for (Index d = 0; d < dx.cols(); ++d)
        dx(t, d) += scale.empty() ? sum[static_cast<std::size_t>(d)]
                                  : scale(t, d) * sum[static_cast<std::size_t>(d)];
    }
  });
}

/// The reverse of logits x weight^T (+ bias), and of the rest of the rule.
template <class Scalar>
void backward_of_logits(const char* where, const RoutingRule& rule, const Matrix<Scalar>& weight,
                        const RouterBackward<Scalar>& call, RouterGradients<Scalar>& gradients) {
  const Index tokens = call.x.rows();
  const Index d_model = weight.cols();
  const auto check_shape = [&](const char* rows_name, const char* cols_name, const auto& matrix,
                               Index rows, Index cols) {
    check_size(where, rows_name, rows, matrix.rows());
    check_size(where, cols_name, cols, matrix.cols());
  };
  check_shape("x.rows()", "x.cols()", call.x, call.dx.rows(), d_model);
  check_shape("routing.logits.rows()", "routing.logits.cols()", call.routing.logits, tokens,
              weight.rows());
  check_shape("routing.scores.rows()", "routing.scores.cols()", call.routing.scores, tokens,
              weight.rows());
  check_size(where, "plan.row_of.size()", tokens * call.routing.top_k(),
             static_cast<Index>(call.plan.row_of.size()));
  check_shape("d_weights.rows()", "d_weights.cols()", call.d_weights, tokens, call.routing.top_k());
  check_shape("d_routed.rows()", "d_routed.cols()", call.d_routed, tokens, call.routing.top_k());
  check_shape("d_logits.rows()", "d_logits.cols()", call.d_logits, tokens, weight.rows());
  check_shape("dx.rows()", "dx.cols()", call.dx, tokens, d_model);
  add_rule_gradients(rule, call);
  // Jitter multiplies, whether x or what comes back.
  Matrix<Scalar> jittered;  // (T, D)
  Matrix<Scalar> factors;   // (T, D)
  MatrixView<const Scalar> seen = call.x;
  if (call.options.training && rule.jitter.target == JitterTarget::router_input) {
    jittered.resize(tokens, d_model);
    factors.setOnes(tokens, d_model);
    jitter<Scalar>(call.x, rule.jitter.epsilon, call.options.seed, jittered);
    jitter<Scalar>(factors, rule.jitter.epsilon, call.options.seed, factors);
    seen = jittered;
  }
  const MatrixView<const Scalar> d_logits = call.d_logits;
  add_weight_gradient(d_logits, seen, gradients.weight);
  add_input_gradient(d_logits, weight, MatrixView<const Scalar>(factors), call.dx);
  for (Index t = 0; t < tokens && gradients.bias.size() != 0; ++t)
    for (Index e = 0; e < weight.rows(); ++e) gradients.bias[e] += d_logits(t, e);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
