// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the backward pass of a router works on, and what routers share in it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/rule_gradient.hpp"

namespace moe::inline MOE_ABI {

/// What a caller may supply to a router beside the tokens.
///
/// Shapes  jitter (T, D), uniform in 0 .. 1; noise (T, E), of deviation 1; previous_logits (T, R).
///         Empty: drawn from the options' seed; no residual.
template <class Scalar>
struct RouteInputs {
  MatrixView<const Scalar> jitter{};
  MatrixView<const Scalar> noise{};
  MatrixView<const Scalar> previous_logits{};
};

/// The gradients of what a router has learnt. A backward adds to them.
///
/// Shapes  as the router's weights: weight (E, D), or (E, P) with a projection (P, D); bias (E);
///         noise_weight (E, D), of NoisyTopKRouter; projection_bias (P); residual (E, R). Empty
///         where the router has no such weights.
template <class Scalar>
struct RouterGradients {
  Matrix<Scalar> weight{};           // (E, D) or (E, P)
  Vector<Scalar> bias{};             // (E)
  Matrix<Scalar> noise_weight{};     // (E, D)
  Matrix<Scalar> projection{};       // (P, D)
  Vector<Scalar> projection_bias{};  // (P)
  Matrix<Scalar> residual{};         // (E, R)

  void set_zero() {
    weight.setZero();
    bias.setZero();
    noise_weight.setZero();
    projection.setZero();
    projection_bias.setZero();
    residual.setZero();
  }
};

/// What a router's backward is given and what it gives.
///
/// Shapes  x (T, D), options, inputs and routing: those of the route; plan: the one that the layer
///         made of the routing. d_weights (T, K), with respect to the weights as the layer used
///         them, after drops. From losses: d_routed (T, K), with respect to Routing::weights;
///         d_logits (T, E), with respect to Routing::logits, to which all that goes on to the
///         logits is added; d_scored (T, E), with respect to the logits that the scores were made
///         of, where scaling or noise made these others; d_deviation (T, E), with respect to a
///         noisy router's deviation. dx (T, D) and d_previous_logits (T, R) are added to. All but
///         d_logits and dx may be empty.
template <class Scalar>
struct RouterBackward {
  MatrixView<const Scalar> x;
  const RouteOptions& options;
  const Routing<Scalar>& routing;
  const DispatchPlan& plan;
  MatrixView<const Scalar> d_weights;
  MatrixView<Scalar> d_logits;
  MatrixView<Scalar> dx;
  MatrixView<const Scalar> d_routed{};
  MatrixView<const Scalar> d_scored{};
  MatrixView<const Scalar> d_deviation{};
  RouteInputs<Scalar> inputs{};
  MatrixView<Scalar> d_previous_logits{};
  bool frozen = false;  ///< the router's own gradients are not wanted
};

/// A router that has a backward pass. `check_backward` throws what `backward` would for these
/// options and gradients, so that a layer refuses them before it has added to any gradient.
template <class R>
concept DifferentiableRouter = Router<R> &&
    requires(const R& r, const RouterBackward<typename R::Scalar>& call,
             typename R::Gradients& gradients, const RouteOptions& options) {
  { r.gradients() } -> std::same_as<typename R::Gradients>;
  { r.check_backward("", options, gradients) } -> std::same_as<void>;
  { r.backward(call, gradients) } -> std::same_as<void>;
};

namespace detail {

template <class M>
void check_shape(const char* where, const char* rows_name, const char* cols_name, const M& matrix,
                 Index rows, Index cols) {
  check_size(where, rows_name, rows, matrix.rows());
  check_size(where, cols_name, cols, matrix.cols());
}

/// Throws ShapeError if what a router's backward is given does not fit the router.
template <class Scalar>
void check_router_call(const char* where, const RouterBackward<Scalar>& call, Index num_experts,
                       Index d_model) {
  const Index tokens = call.x.rows();
  const Index top_k = call.routing.top_k();
  const auto check_one = [&](const char* rows_name, const char* cols_name, const auto& matrix,
                             Index cols, bool may_be_empty) {
    if (may_be_empty && (matrix.rows() == 0 || matrix.cols() == 0)) return;
    check_shape(where, rows_name, cols_name, matrix, tokens, cols);
  };
  check_one("x.rows()", "x.cols()", call.x, d_model, false);
  check_one("dx.rows()", "dx.cols()", call.dx, d_model, false);
  check_size(where, "routing.tokens()", tokens, call.routing.tokens());
  check_one("routing.logits.rows()", "routing.logits.cols()", call.routing.logits, num_experts,
            false);
  check_one("routing.scores.rows()", "routing.scores.cols()", call.routing.scores, num_experts,
            false);
  check_size(where, "plan.row_of.size()", tokens * top_k,
             static_cast<Index>(call.plan.row_of.size()));
  check_one("d_logits.rows()", "d_logits.cols()", call.d_logits, num_experts, false);
  check_one("d_weights.rows()", "d_weights.cols()", call.d_weights, top_k, true);
  check_one("d_routed.rows()", "d_routed.cols()", call.d_routed, top_k, true);
  check_one("d_scored.rows()", "d_scored.cols()", call.d_scored, num_experts, true);
  check_one("d_deviation.rows()", "d_deviation.cols()", call.d_deviation, num_experts, true);
}

/// Which choices of token t the plan kept.
inline void find_kept(const DispatchPlan& plan, Index t, Index top_k, bool* kept) {
  for (Index k = 0; k < top_k; ++k)
    kept[k] = plan.row_of[static_cast<std::size_t>(t * top_k + k)] != DispatchPlan::no_row;
}

/// Calls finish(t, z, dz) for every token, in parallel: z (E) are the logits that the rule worked
/// on, which logits_of(t, memory) gives, dz (E) the gradient with respect to them.
template <class Scalar, class LogitsOf, class Finish>
void for_each_rule_gradient(const RoutingRule& rule, const RouterBackward<Scalar>& call,
                            const LogitsOf& logits_of, const Finish& finish) {
  const Routing<Scalar>& routing = call.routing;
  const Index top_k = routing.top_k();
  const Index experts = routing.num_experts;
  RoutingRule as_routed = rule;  // Where weights are finished after the drop, they are not yet.
  if (rule.renormalization.after_drop) {
    as_routed.renormalization = {};
    as_routed.scale = 1;
  }
  parallel::for_each_block(routing.tokens(), router_block_tokens, [&](Index begin, Index end) {
    RuleGradientScratch<Scalar> scratch(top_k);
    const auto kept = std::make_unique<bool[]>(static_cast<std::size_t>(top_k));
    Vector<Scalar> memory(experts);
    Vector<Scalar> slope(experts);
    for (Index t = begin; t < end; ++t) {
      find_kept(call.plan, t, top_k, kept.get());
      const Scalar* const z = logits_of(t, memory.data());
      slope.setZero();
      const auto add = [&](const RoutingRule& of, MatrixView<const Scalar> gradient,
                           const bool* which) {
        const auto is_zero = [](Scalar value) { return value == 0; };
        if (gradient.empty() || std::all_of(gradient.row(t), gradient.row(t) + top_k, is_zero))
          return;
        add_rule_gradient(of, z, row_data(routing.scores, t), experts, row_data(routing.experts, t),
                          top_k, gradient.row(t), which, scratch, slope.data());
      };
      add(rule, call.d_weights, kept.get());
      add(as_routed, call.d_routed, nullptr);
      for (Index e = 0; e < experts && !call.d_scored.empty(); ++e) slope[e] += call.d_scored(t, e);
      finish(t, z, slope.data());
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

/// bias (E) += the sum of the rows, in order.
template <class Scalar>
void add_bias_gradient(MatrixView<const Scalar> d_logits, Vector<Scalar>& bias) {
  for (Index t = 0; t < d_logits.rows() && bias.size() != 0; ++t)
    for (Index e = 0; e < bias.size(); ++e) bias[e] += d_logits(t, e);
}

/// The reverse of logits = x weight^T.
template <class Scalar>
void add_linear_gradients(const RouterBackward<Scalar>& call, MatrixView<const Scalar> d_logits,
                          const Matrix<Scalar>& weight, Matrix<Scalar>& gradient) {
  if (!call.frozen) add_weight_gradient<Scalar>(d_logits, call.x, gradient);
  add_input_gradient<Scalar>(d_logits, weight, {}, call.dx);
}

/// The reverse of a router with linear logits whose weights a rule made of them: what most routers
/// with a choice of their own need.
template <class Scalar>
void backward_of_rule(const char* where, const RoutingRule& rule,
                      const RouterBackward<Scalar>& call, const Matrix<Scalar>& weight,
                      Matrix<Scalar>& gradient) {
  check_router_call(where, call, weight.rows(), weight.cols());
  for_each_rule_gradient<Scalar>(
      rule, call, [&](Index t, Scalar* /*memory*/) { return row_data(call.routing.logits, t); },
      [&](Index t, const Scalar* /*z*/, const Scalar* slope) {
        for (Index e = 0; e < weight.rows(); ++e) call.d_logits(t, e) += slope[e];
      });
  add_linear_gradients<Scalar>(call, call.d_logits, weight, gradient);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
