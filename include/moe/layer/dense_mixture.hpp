// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// DenseMixture: the adaptive mixture of local experts, in which every expert sees every token.
#pragma once

#include <cmath>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

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

  /// Throws  ShapeError if the parts differ in d_model or num_experts.
  DenseMixture(RouterT router, BankT experts)
      : router_(std::move(router)), experts_(std::move(experts)) {
    detail::check_size("DenseMixture", "experts.d_model()", router_.d_model(), experts_.d_model());
    detail::check_size("DenseMixture", "experts.num_experts()", router_.num_experts(),
                       experts_.num_experts());
  }

  Index d_model() const noexcept { return router_.d_model(); }
  Index num_experts() const noexcept { return router_.num_experts(); }
  const RouterT& router() const noexcept { return router_; }
  const BankT& experts() const noexcept { return experts_; }

  /// Shapes  x, y (T, D); the routing that is returned has all experts in order, K = E, and p as
  ///         weights. It belongs to the workspace.
  /// Throws  ShapeError if x or y do not fit; std::invalid_argument if y overlaps x.
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 Workspace<Scalar>& workspace, RouteOptions options = {}) const {
    constexpr const char* where = "DenseMixture::forward";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "y.rows()", x.rows(), y.rows());
    detail::check_size(where, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), where, "y overlaps x");
    options.keep_scores = true;
    Routing<Scalar>& routing = workspace.routing;
    router_.route(x, options, routing);
    routing.weights = routing.scores;
    routing.experts.resize(x.rows(), num_experts());
    for (Index t = 0; t < x.rows(); ++t)
      for (Index e = 0; e < num_experts(); ++e) routing.experts(t, e) = static_cast<ExpertIndex>(e);
    make_full_plan(x.rows(), num_experts(), workspace.plan);
    workspace.rows.resize(workspace.plan.num_rows(), d_model());
    experts_.forward({x, workspace.plan, {}}, workspace.rows, workspace.scratch);
    combine<Scalar>(workspace.rows, workspace.plan, routing.weights, y);
    return routing;
  }

 private:
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

/// Errors of a DenseMixture, one for each token.
///
/// Shapes  routing of `DenseMixture::forward`, rows (E T, D) of its workspace, target (T, D);
///         result (T).
/// Values  0 at best for the first two; the likelihood error has no least value of its own. It is
///         finite wherever some p is positive and the distances are finite.
/// Throws  ShapeError if sizes disagree.
/// Source  Jacobs et al. (1991), eq. 1.1 to 1.3.
template <class Scalar>
Vector<double> mixture_error(MixtureError error, const Routing<Scalar>& routing,
                             std::type_identity_t<MatrixView<const Scalar>> rows,
                             std::type_identity_t<MatrixView<const Scalar>> target) {
  constexpr const char* where = "mixture_error";
  const Index tokens = routing.tokens();
  const Index experts = routing.num_experts;
  moe::detail::check_size(where, "routing.top_k()", experts, routing.top_k());
  moe::detail::check_size(where, "rows.rows()", tokens * experts, rows.rows());
  moe::detail::check_size(where, "target.rows()", tokens, target.rows());
  moe::detail::check_size(where, "target.cols()", rows.cols(), target.cols());
  Vector<double> errors = Vector<double>::Zero(tokens);
  Vector<double> logs(experts);  // (E)
  for (Index t = 0; t < tokens; ++t) {
    Vector<double> rest = target.map().row(t).transpose().template cast<double>();  // (D)
    for (Index e = 0; e < experts; ++e) {
      const auto p = static_cast<double>(routing.weights(t, e));
      const auto output = rows.map().row(e * tokens + t).transpose().template cast<double>();
      if (error == MixtureError::cooperative) {
        rest -= p * output;
        continue;
      }
      const double distance =
          (target.map().row(t).transpose().template cast<double>() - output).squaredNorm();
      if (error == MixtureError::competitive) errors[t] += p * distance;
      logs[e] = std::log(p) - distance / 2;
    }
    if (error == MixtureError::cooperative) errors[t] = rest.squaredNorm();
    if (error != MixtureError::likelihood) continue;
    const double largest = logs.maxCoeff();
    errors[t] = std::isfinite(largest) ? -(largest + std::log((logs.array() - largest).exp().sum()))
                                       : -largest;
  }
  return errors;
}

}  // namespace losses
}  // namespace moe::inline MOE_ABI
