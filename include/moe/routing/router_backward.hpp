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
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/linear_map.hpp"
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

  /// Whether anything goes back through the choices' weights. Of a dense mixture nothing does.
  bool has_choices() const noexcept { return !d_weights.empty() || !d_routed.empty(); }

  /// The same on another routing.
  RouterBackward on(const Routing<Scalar>& other, MatrixView<const Scalar> other_d_routed) const {
    return {x,     options,        other,    plan,        d_weights, d_logits,
            dx,    other_d_routed, d_scored, d_deviation, inputs,    d_previous_logits,
            frozen};
  }
};

/// A router that has a backward pass. `check_backward` throws what `backward` would for these
/// gradients, so that a layer refuses them before it has added to any. Its `hidden_states`, if it
/// has any, multiplies each value of x by a factor that does not depend on x.
template <class R>
concept DifferentiableRouter = Router<R> &&
    requires(const R& r, const RouterBackward<typename R::Scalar>& call,
             typename R::Gradients& gradients, const RouteOptions& options) {
  { r.gradients() } -> std::same_as<typename R::Gradients>;
  { r.check_backward("", gradients) } -> std::same_as<void>;
  { r.backward(call, gradients) } -> std::same_as<void>;
};

/// In place of the gradients of a router that has no backward pass.
struct NoGradients {
  void set_zero() noexcept {}
};

namespace detail {

template <class RouterT>
struct GradientsOfRouter {
  using Type = NoGradients;
};
template <DifferentiableRouter RouterT>
struct GradientsOfRouter<RouterT> {
  using Type = typename RouterT::Gradients;
};

/// Throws ShapeError or std::invalid_argument if what a router's backward is given does not fit the
/// router.
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
  check(!overlap(call.x, call.dx), where, "dx overlaps x");
  check_one("x.rows()", "x.cols()", call.x, d_model, false);
  check_one("dx.rows()", "dx.cols()", call.dx, d_model, false);
  check_size(where, "routing.tokens()", tokens, call.routing.tokens());
  check_size(where, "routing.num_experts", num_experts, call.routing.num_experts);
  for (Index i = 0; i < tokens * top_k; ++i)
    check(
        call.routing.experts.data()[i] >= no_expert && call.routing.experts.data()[i] < num_experts,
        where, "routing.experts names an expert that is out of range");
  check_one("routing.weights.rows()", "routing.weights.cols()", call.routing.weights, top_k, false);
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

/// Throws std::invalid_argument if the caller supplies what the router does not know.
template <class Scalar>
void check_no_inputs(const char* where, const RouteInputs<Scalar>& inputs,
                     bool knows_noise = false) {
  check(inputs.jitter.empty() && inputs.previous_logits.empty() &&
            (knows_noise || inputs.noise.empty()),
        where, "the router has no such inputs");
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
  if (!call.frozen) add_transposed_product<Scalar>(d_logits, call.x, gradient);
  add_product<Scalar>(d_logits, weight, {}, call.dx);
}

/// Throws  ShapeError if the gradient is not that of a weight (E, D).
template <class Scalar>
void check_weight_gradient(const char* where, const Matrix<Scalar>& gradient, Index num_experts,
                           Index d_model) {
  check_shape(where, "gradients.weight.rows()", "gradients.weight.cols()", gradient, num_experts,
              d_model);
}

/// The reverse of a router with linear logits whose weights a rule made of them: what most routers
/// with a choice of their own need.
template <class Scalar>
void backward_of_rule(const char* where, const RoutingRule& rule,
                      const RouterBackward<Scalar>& call, const Matrix<Scalar>& weight,
                      Matrix<Scalar>& gradient) {
  check_router_call(where, call, weight.rows(), weight.cols());
  check_no_inputs(where, call.inputs);
  for_each_rule_gradient<Scalar>(
      rule, call, [&](Index t, Scalar* /*memory*/) { return row_data(call.routing.logits, t); },
      [&](Index t, const Scalar* /*z*/, const Scalar* slope) {
        for (Index e = 0; e < weight.rows(); ++e) call.d_logits(t, e) += slope[e];
      });
  add_linear_gradients<Scalar>(call, call.d_logits, weight, gradient);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
