// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// DenseMixture: the adaptive mixture of local experts, in which every expert sees every token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/tape.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/rule_gradient.hpp"

namespace moe::inline MOE_ABI {

/// What a forward of DenseMixture leaves for its backward.
///
/// Shapes  rows (E T, D), every expert's output, row e T + t; routing (T, E) of all experts. Zero
///         after a forward, so that losses add their gradients before the backward: d_rows, with
///         respect to rows; d_weights (T, E), with respect to p; d_logits and d_scored (T, E) as of
///         Tape.
template <class Scalar>
struct MixtureTape {
  Routing<Scalar> routing{};
  DispatchPlan plan{};
  GrowingMatrix<Scalar> rows{};
  GrowingMatrix<Scalar> d_rows{};
  GrowingMatrix<Scalar> d_weights{};
  GrowingMatrix<Scalar> d_logits{};
  GrowingMatrix<Scalar> d_scored{};

  // The rest is the layer's.
  const void* layer = nullptr;  // that filled it; none after a backward
  KeptOptions options{};
  KeptSums<Scalar> sums{};  // (E T, sums of a row)
};

/// The gradients of what a DenseMixture has learnt. A backward adds to them.
template <class RouterT, class BankT>
struct MixtureGradients {
  typename RouterT::Gradients router;
  typename BankT::Gradients experts;

  void set_zero() {
    router.set_zero();
    experts.set_zero();
  }
};

/// y = sum over all experts of p_i f_i(x), where the router's scores are p: a softmax in 1991. What
/// the router chooses does not matter. The workspace keeps every expert's output, row e T + t of
/// `rows`, for the losses.
///
/// Source  Jacobs, Jordan, Nowlan and Hinton (1991), "Adaptive mixtures of local experts", Neural
///         Computation 3(1).
template <Router RouterT, ExpertBank BankT>
class DenseMixture {
 public:
  using Scalar = typename RouterT::Scalar;

  /// Throws  ShapeError if the parts differ in d_model or num_experts; std::invalid_argument if the
  ///         experts have biases that no weight is to multiply.
  DenseMixture(RouterT router, BankT experts)
      : router_(std::move(router)), experts_(std::move(experts)) {
    detail::check_size("DenseMixture", "experts.d_model()", router_.d_model(), experts_.d_model());
    detail::check_size("DenseMixture", "experts.num_experts()", router_.num_experts(),
                       experts_.num_experts());
    detail::check_no_unweighted_bias("DenseMixture", experts_);
  }

  Index d_model() const noexcept { return router_.d_model(); }
  Index num_experts() const noexcept { return router_.num_experts(); }
  const RouterT& router() const noexcept { return router_; }
  RouterT& router() noexcept { return router_; }
  const BankT& experts() const noexcept { return experts_; }
  BankT& experts() noexcept { return experts_; }

  /// Shapes  x, y (T, D); the routing that is returned has all experts in order, K = E, and p as
  ///         weights. It belongs to the workspace.
  /// Throws  ShapeError if x or y do not fit; std::invalid_argument if y overlaps x.
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 Workspace<Scalar>& workspace, RouteOptions options = {}) const {
    prepare(x, y, options, workspace.routing, workspace.plan, workspace.rows);
    experts_.forward({x, workspace.plan}, workspace.rows, workspace.scratch);
    combine<Scalar>(workspace.rows, workspace.plan, workspace.routing.weights, y);
    return workspace.routing;
  }

  /// The same, and fills the tape for a `backward`. The routing is the tape's.
  template <DifferentiableBank B = BankT, DifferentiableRouter R = RouterT>
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 MixtureTape<Scalar>& tape, Scratch& scratch,
                                 RouteOptions options = {}) const {
    tape.layer = nullptr;
    options.keep_logits = true;
    prepare(x, y, options, tape.routing, tape.plan, tape.rows);
    experts_.forward({x, tape.plan}, tape.rows, tape.sums.resize(sums_count(tape)), scratch);
    combine<Scalar>(tape.rows, tape.plan, tape.routing.weights, y);
    tape.options.keep(options);
    tape.d_rows.resize(tape.rows.rows(), tape.rows.cols());
    tape.d_rows.setZero();
    for (auto* const sum : {&tape.d_weights, &tape.d_logits, &tape.d_scored}) {
      sum->resize(x.rows(), num_experts());
      sum->setZero();
    }
    tape.layer = this;
    return tape.routing;
  }

  /// Zeros, to which `backward` adds.
  template <DifferentiableBank B = BankT, DifferentiableRouter R = RouterT>
  MixtureGradients<RouterT, BankT> gradients() const {
    return {router_.gradients(), experts_.gradients()};
  }

  /// The reverse of the forward that filled the tape, which serves once: from the gradient with
  /// respect to y and those of losses on the tape to dx and, added, to the gradients of router and
  /// experts.
  ///
  /// Shapes  x as in the forward, dy, dx (T, D); dy may be empty where no loss is a function of y.
  /// Throws  std::invalid_argument if no forward of this layer filled the tape, or dx overlaps x or
  ///         dy; ShapeError if a size disagrees.
  template <DifferentiableBank B = BankT, DifferentiableRouter R = RouterT>
  void backward(MatrixView<const Scalar> x, MixtureTape<Scalar>& tape, MatrixView<const Scalar> dy,
                MatrixView<Scalar> dx, MixtureGradients<RouterT, BankT>& gradients,
                Scratch& scratch) const {
    constexpr const char* where = "DenseMixture::backward";
    detail::check(tape.layer == this, where, "the tape is of another layer, or was used");
    const Index tokens = tape.routing.tokens();
    detail::check_shape(where, "x.rows()", "x.cols()", x, tokens, d_model());
    if (!dy.empty()) detail::check_shape(where, "dy.rows()", "dy.cols()", dy, tokens, d_model());
    detail::check_shape(where, "dx.rows()", "dx.cols()", dx, tokens, d_model());
    detail::check(!detail::overlap(x, dx) && !detail::overlap(dy, dx), where,
                  "dx overlaps x or dy");
    detail::check_shape(where, "tape.d_rows.rows()", "tape.d_rows.cols()", tape.d_rows,
                        tape.plan.num_rows(), d_model());
    detail::check_shape(where, "tape.d_weights.rows()", "tape.d_weights.cols()", tape.d_weights,
                        tokens, num_experts());
    detail::check_shape(where, "tape.d_logits.rows()", "tape.d_logits.cols()", tape.d_logits,
                        tokens, num_experts());
    detail::check_shape(where, "tape.d_scored.rows()", "tape.d_scored.cols()", tape.d_scored,
                        tokens, num_experts());
    detail::check(tape.sums.size() == sums_count(tape), where,
                  "the layer is not as it was in the forward");
    router_.check_backward(where, gradients.router);
    experts_.check_backward(where, gradients.experts);
    tape.layer = nullptr;
    const Routing<Scalar>& routing = tape.routing;
    for (Index e = 0; e < num_experts() && !dy.empty(); ++e) {
      for (Index t = 0; t < tokens; ++t) {
        const Index r = e * tokens + t;
        tape.d_weights(t, e) += tape.rows.row(r).dot(dy.map().row(t));
        tape.d_rows.row(r) += routing.weights(t, e) * dy.map().row(t);
      }
    }
    Matrix<Scalar> d_inputs(tape.plan.num_rows(), d_model());
    const ExpertInput<Scalar> input{x, tape.plan};
    BankBackward<Scalar> call{input, tape.d_rows, tape.sums.values(), d_inputs};
    call.dy_of_rows = true;
    experts_.backward(call, gradients.experts, scratch);
    for (Index t = 0; t < tokens; ++t) {
      std::fill_n(dx.row(t), d_model(), Scalar(0));
      for (Index e = 0; e < num_experts(); ++e) dx.map().row(t) += d_inputs.row(e * tokens + t);
      detail::add_score_gradient(routing.score_function, detail::row_data(routing.logits, t),
                                 detail::row_data(routing.scores, t), num_experts(),
                                 detail::row_data(routing.experts, t), tape.d_weights.row(t).data(),
                                 num_experts(), tape.d_scored.row(t).data());
    }
    const RouteOptions options = tape.options.view();
    router_.backward({.x = x,
                      .options = options,
                      .routing = routing,
                      .plan = tape.plan,
                      .d_weights = {},
                      .d_logits = tape.d_logits,
                      .dx = dx,
                      .d_scored = tape.d_scored},
                     gradients.router);
  }

 private:
  /// All that comes before the experts.
  void prepare(MatrixView<const Scalar> x, MatrixView<Scalar> y, RouteOptions options,
               Routing<Scalar>& routing, DispatchPlan& plan, GrowingMatrix<Scalar>& rows) const {
    constexpr const char* where = "DenseMixture::forward";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "y.rows()", x.rows(), y.rows());
    detail::check_size(where, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), where, "y overlaps x");
    options.keep_scores = true;
    router_.route(x, options, routing);
    detail::check(routing.scores.rows() == x.rows() && routing.scores.cols() == num_experts(),
                  where, "the router gives no scores");
    routing.weights = routing.scores;
    routing.experts.resize(x.rows(), num_experts());
    for (Index t = 0; t < x.rows(); ++t)
      for (Index e = 0; e < num_experts(); ++e) routing.experts(t, e) = static_cast<ExpertIndex>(e);
    make_full_plan(x.rows(), num_experts(), plan);
    rows.resize(plan.num_rows(), d_model());
  }

  std::size_t sums_count(const MixtureTape<Scalar>& tape) const {
    return static_cast<std::size_t>(tape.plan.num_rows() * experts_.sums_size());
  }

  RouterT router_;
  BankT experts_;
};

namespace losses {

/// The three errors of 1991 for the outputs o_i of all experts and a target d, of each token:
enum class MixtureError {
  cooperative,  ///< ||d - sum p_i o_i||^2: the experts share the work
  competitive,  ///< sum p_i ||d - o_i||^2: one expert is to do it alone
  likelihood,   ///< -log sum p_i exp(-||d - o_i||^2 / 2), the one that the paper recommends
};

/// Asks `mixture_error` to add `coefficient` times the gradient of the errors' sum.
///
/// Shapes  rows (E T, D), weights (T, E), as of MixtureTape; each may be left out.
/// Values  with the likelihood, an expert whose p is 0 gets none by its weight.
template <class Scalar>
struct MixtureErrorGradient {
  MatrixView<Scalar> rows{};
  MatrixView<Scalar> weights{};
  double coefficient = 1;

  bool wanted() const noexcept { return rows.data() != nullptr || weights.data() != nullptr; }
};

/// Errors of a DenseMixture, one for each token.
///
/// Shapes  routing of `DenseMixture::forward`, rows (E T, D) of its workspace or tape, target (T,
///         D); result (T).
/// Values  0 at best for the first two; the likelihood error has no least value of its own. It is
///         finite wherever some p is positive and the distances are finite.
/// Throws  ShapeError if sizes disagree; std::invalid_argument if the gradient's coefficient is not
///         finite.
/// Source  Jacobs et al. (1991), eq. 1.1 to 1.3.
template <class Scalar>
Vector<double> mixture_error(MixtureError error, const Routing<Scalar>& routing,
                             std::type_identity_t<MatrixView<const Scalar>> rows,
                             std::type_identity_t<MatrixView<const Scalar>> target,
                             const MixtureErrorGradient<Scalar>& gradient = {}) {
  constexpr const char* where = "mixture_error";
  const Index tokens = routing.tokens();
  const Index experts = routing.num_experts;
  moe::detail::check_size(where, "routing.top_k()", experts, routing.top_k());
  moe::detail::check_shape(where, "routing.weights.rows()", "routing.weights.cols()",
                           routing.weights, tokens, experts);
  moe::detail::check_size(where, "rows.rows()", tokens * experts, rows.rows());
  moe::detail::check_size(where, "target.rows()", tokens, target.rows());
  moe::detail::check_size(where, "target.cols()", rows.cols(), target.cols());
  if (gradient.wanted()) detail::check_coefficient(where, gradient.coefficient);
  if (gradient.rows.data() != nullptr)
    moe::detail::check_shape(where, "gradient.rows.rows()", "gradient.rows.cols()", gradient.rows,
                             rows.rows(), rows.cols());
  if (gradient.weights.data() != nullptr)
    moe::detail::check_shape(where, "gradient.weights.rows()", "gradient.weights.cols()",
                             gradient.weights, tokens, experts);
  Vector<double> errors = Vector<double>::Zero(tokens);
  Vector<double> distances(experts);  // (E)
  Vector<double> logs(experts);       // (E)
  for (Index t = 0; t < tokens; ++t) {
    const Vector<double> wanted = target.map().row(t).transpose().template cast<double>();  // (D)
    const auto output = [&](Index e) -> Vector<double> {
      return rows.map().row(e * tokens + t).transpose().template cast<double>();
    };
    const auto p = [&](Index e) { return static_cast<double>(routing.weights(t, e)); };
    Vector<double> rest = wanted;  // (D)
    for (Index e = 0; e < experts; ++e) {
      if (error == MixtureError::cooperative) rest -= p(e) * output(e);
      distances[e] = (wanted - output(e)).squaredNorm();
      logs[e] = std::log(p(e)) - distances[e] / 2;
      if (error == MixtureError::competitive) errors[t] += p(e) * distances[e];
    }
    if (error == MixtureError::cooperative) errors[t] = rest.squaredNorm();
    if (error == MixtureError::likelihood) {
      const double largest = logs.maxCoeff();
      errors[t] = std::isfinite(largest)
                      ? -(largest + std::log((logs.array() - largest).exp().sum()))
                      : -largest;
    }
    if (!gradient.wanted()) continue;
    for (Index e = 0; e < experts; ++e) {
      double by_weight = distances[e];
      Vector<double> by_output;  // (D)
      if (error == MixtureError::cooperative) {
        by_weight = -2 * rest.dot(output(e));
        by_output = -2 * p(e) * rest;
      } else if (error == MixtureError::competitive) {
        by_output = 2 * p(e) * (output(e) - wanted);
      } else {  // How likely it is that this expert made the target, and that over its p.
        const double responsibility = std::exp(logs[e] + errors[t]);
        by_weight = p(e) > 0 ? std::max(-responsibility / p(e), -1e30) : 0;
        by_output = responsibility * (output(e) - wanted);
      }
      if (gradient.weights.data() != nullptr)
        gradient.weights(t, e) += static_cast<Scalar>(gradient.coefficient * by_weight);
      for (Index d = 0; d < rows.cols() && gradient.rows.data() != nullptr; ++d)
        gradient.rows(e * tokens + t, d) +=
            static_cast<Scalar>(gradient.coefficient * by_output[d]);
    }
  }
  return errors;
}

}  // namespace losses
}  // namespace moe::inline MOE_ABI
