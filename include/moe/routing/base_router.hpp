// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// BaseRouter: balanced assignment in training, the best expert in use.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/auction.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI {

/// One expert for each token: in training by `balanced_assignment` of the logits, else the best
/// logit. The weight is the logit's sigmoid a.
///
/// Values  BASE gives a f(x) + (1 - a) x with experts f(x) = x + g(x), which is x + a g(x): a layer
///         of this router and the experts g, within the transformer's residual.
/// Ties    lower expert index first; a NaN logit has weight 0.
/// Source  Lewis et al. (2021), arXiv:2103.16716; fairseq `base_layer.py`.
template <class ScalarT>
class BaseRouter {
 public:
  using Scalar = ScalarT;

  /// Shapes  centroids (E, D).
  /// Throws  std::invalid_argument if there are none, or epsilon (see balanced_assignment) is
  ///         negative.
  explicit BaseRouter(Matrix<Scalar> centroids, double epsilon = 0)
      : centroids_(centroids), epsilon_(epsilon) {
    detail::check(!centroids_.empty(), "BaseRouter", "there are no centroids");
    detail::check(epsilon_ >= 0, "BaseRouter", "epsilon must not be negative");
  }

  Index d_model() const noexcept { return centroids_.inner(); }
  Index num_experts() const noexcept { return centroids_.outputs(); }
  Index top_k() const noexcept { return 1; }
  /// A copy, unpacked.
  Matrix<Scalar> centroids() const { return centroids_.weight(); }

  /// Shapes  x (T, D); routing becomes (T, 1) and, where `options` keeps them, (T, E).
  /// Throws  ShapeError if x is not D wide.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    detail::check_size("BaseRouter::route", "x.cols()", d_model(), x.cols());
    routing.resize(x.rows(), num_experts(), 1, options);
    routing.score_function = ScoreFunction::sigmoid;
    Matrix<Scalar> logits(x.rows(), num_experts());  // (T, E)
    detail::for_each_logits(x, centroids_, [&](Index t, const Scalar* z) {
      std::copy_n(z, num_experts(), detail::row_data(logits, t));
    });
    std::vector<ExpertIndex> assigned;
    if (options.training)
      assigned = balanced_assignment<Scalar>(MatrixView<const Scalar>(logits), epsilon_);
    std::vector<Scalar> key(static_cast<std::size_t>(num_experts()));
    for (Index t = 0; t < x.rows(); ++t) {
      if (options.training) {
        routing.experts(t, 0) = assigned[static_cast<std::size_t>(t)];
      } else {
        for (Index e = 0; e < num_experts(); ++e)
          key[static_cast<std::size_t>(e)] = detail::selection_key(logits(t, e));
        select_top_k(key.data(), num_experts(), 1, detail::row_data(routing.experts, t));
      }
      score_logits(ScoreFunction::sigmoid, &logits(t, routing.experts(t, 0)), 1,
                   detail::row_data(routing.weights, t));
      if (options.keep_scores)
        score_logits(ScoreFunction::sigmoid, detail::row_data(logits, t), num_experts(),
                     detail::row_data(routing.scores, t));
    }
    if (options.keep_logits) routing.logits = std::move(logits);
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds: `weight` is that of the centroids.
  Gradients gradients() const { return {.weight = Matrix<Scalar>::Zero(num_experts(), d_model())}; }

  /// The reverse of `route`, through the sigmoid of the logit: the assignment has no gradient.
  ///
  /// Throws  ShapeError if the routing was made without logits and scores, or a size disagrees.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "BaseRouter::backward";
    check_backward(where, gradients);
    detail::backward_of_rule(where, {.score = ScoreFunction::sigmoid}, call, centroids_.weight(),
                             gradients.weight);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    detail::check_weight_gradient(where, gradients.weight, num_experts(), d_model());
  }

 private:
  detail::LinearMap<Scalar> centroids_;  // (E, D)
  double epsilon_;
};

}  // namespace moe::inline MOE_ABI
