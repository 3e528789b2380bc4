// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// GroupRouter: one decision for a group of tokens, such as a sequence or a task.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/part_backward.hpp"
#include "moe/routing/router_backward.hpp"

namespace moe::inline MOE_ABI {

/// Routes groups of tokens by another router, each group by the mean of its tokens (sequence-level)
/// or by a row that the caller supplies (task-level, such as a task's embedding). All tokens of a
/// group get the group's experts and weights. `RouteOptions::token_groups` names the group of each
/// token by a number from 0 on; without it, all tokens are one group.
///
/// Source  Kudugunta et al. (2021), arXiv:2110.03742.
template <Router RouterT>
class GroupRouter {
 public:
  using Scalar = typename RouterT::Scalar;

  explicit GroupRouter(RouterT router) : router_(std::move(router)) {}

  Index d_model() const noexcept { return router_.d_model(); }
  Index num_experts() const noexcept { return router_.num_experts(); }
  Index top_k() const noexcept { return router_.top_k(); }
  const RouterT& router() const noexcept { return router_; }

  /// Shapes  x (T, D), options.token_groups (T) or empty; routing becomes (T, K).
  /// Throws  ShapeError if sizes disagree; std::invalid_argument if a group is negative.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    std::vector<Index> group = groups_of(x, options);
    const std::vector<Index> counts = count_groups(group);
    spread(means_of(x, group, counts), group, options, routing);
  }

  /// The same by one row for each group.
  ///
  /// Shapes  x (T, D), group_inputs (G, D).
  /// Throws  ShapeError if sizes disagree; std::invalid_argument if a group is out of range.
  void route(MatrixView<const Scalar> x, MatrixView<const Scalar> group_inputs,
             RouteOptions options, Routing<Scalar>& routing) const {
    const std::vector<Index> group = groups_of(x, options);
    for (const Index g : group)
      detail::check(g < group_inputs.rows(), where, "a token's group has no input");
    spread(group_inputs, group, options, routing);
  }

  /// What the experts see in place of x (T, D): the router's word.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    return detail::hidden_states(router_, x, options, buffer);
  }

  using Gradients = typename detail::GradientsOfRouter<RouterT>::Type;

  /// Those of the router that it holds.
  Gradients gradients() const requires DifferentiableRouter<RouterT> { return router_.gradients(); }

  /// The reverse of `route` by the groups' means: what a group's tokens give goes to its one
  /// decision together, and from its mean to each token alike. Logits are the group's:
  /// `d_logits` stays as losses left it.
  ///
  /// Throws  as the router's backward; std::invalid_argument if the caller supplies inputs.
  void backward(const RouterBackward<Scalar>& call,
                Gradients& gradients) const requires DifferentiableRouter<RouterT> {
    constexpr const char* name = "GroupRouter::backward";
    check_backward(name, gradients);
    detail::check_outer_call(name, call, num_experts(), d_model());
    std::vector<Index> group = groups_of(call.x, call.options);
    const std::vector<Index> counts = count_groups(group);
    const Routing<Scalar>& routing = call.routing;
    const Matrix<Scalar> d_routed = detail::gradient_of_routed(call);
    detail::PartBackward<Scalar> part(call, static_cast<Index>(counts.size()), num_experts(),
                                      routing.top_k());
    part.x = means_of(call.x, group, counts);
    for (Index t = 0; t < routing.tokens(); ++t) {
      const Index g = group[static_cast<std::size_t>(t)];
      part.routing.experts.row(g) = routing.experts.row(t);
      part.routing.weights.row(g) = routing.weights.row(t);
      part.routing.logits.row(g) = routing.logits.row(t);
      part.routing.scores.row(g) = routing.scores.row(t);
      part.d_routed.row(g) += d_routed.row(t);
      part.d_logits.row(g) += call.d_logits.map().row(t);
      if (!call.d_scored.empty()) part.d_scored.row(g) += call.d_scored.map().row(t);
    }
    router_.backward(part.call(call.frozen), gradients);
    for (Index t = 0; t < routing.tokens(); ++t) {
      const Index g = group[static_cast<std::size_t>(t)];
      call.dx.map().row(t) +=
          part.dx.row(g) / static_cast<Scalar>(counts[static_cast<std::size_t>(g)]);
    }
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* name,
                      const Gradients& gradients) const requires DifferentiableRouter<RouterT> {
    router_.check_backward(name, gradients);
  }

 private:
  static constexpr const char* where = "GroupRouter::route";

  std::vector<Index> groups_of(MatrixView<const Scalar> x, const RouteOptions& options) const {
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    std::vector<Index> group(static_cast<std::size_t>(x.rows()), 0);
    if (options.token_groups.empty()) return group;
    detail::check_size(where, "options.token_groups.size()", x.rows(),
                       static_cast<Index>(options.token_groups.size()));
    for (std::size_t t = 0; t < group.size(); ++t) {
      group[t] = options.token_groups[t];
      detail::check(group[t] >= 0, where, "a token's group is negative");
    }
    return group;
  }

  /// Tokens of each group; the groups are numbered without gaps first, in order of their names:
  /// however large, names need no rows between them.
  static std::vector<Index> count_groups(std::vector<Index>& group) {
    std::vector<Index> names = group;
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    std::vector<Index> counts(names.size(), 0);
    for (Index& g : group) {
      g = std::lower_bound(names.begin(), names.end(), g) - names.begin();
      ++counts[static_cast<std::size_t>(g)];
    }
    return counts;
  }

  /// Shapes  result (G, D).
  Matrix<Scalar> means_of(MatrixView<const Scalar> x, const std::vector<Index>& group,
                          const std::vector<Index>& counts) const {
    Matrix<Scalar> means = Matrix<Scalar>::Zero(static_cast<Index>(counts.size()), d_model());
    for (Index t = 0; t < x.rows(); ++t)
      means.row(group[static_cast<std::size_t>(t)]) += x.map().row(t);
    for (Index g = 0; g < means.rows(); ++g)
      means.row(g) /= static_cast<Scalar>(counts[static_cast<std::size_t>(g)]);
    return means;
  }

  /// Routes the groups and gives their choices to the tokens.
  void spread(MatrixView<const Scalar> group_inputs, const std::vector<Index>& group,
              RouteOptions options, Routing<Scalar>& routing) const {
    options.token_ids = {};
    options.token_types = {};
    options.token_groups = {};
    Routing<Scalar> decided;
    router_.route(group_inputs, options, decided);
    const auto tokens = static_cast<Index>(group.size());
    routing = decided;
    routing.experts.resize(tokens, decided.top_k());
    routing.weights.resize(tokens, decided.top_k());
    routing.logits.resize(decided.logits.size() != 0 ? tokens : 0, decided.logits.cols());
    routing.scores.resize(decided.scores.size() != 0 ? tokens : 0, decided.scores.cols());
    for (Index t = 0; t < tokens; ++t) {
      const Index g = group[static_cast<std::size_t>(t)];
      routing.experts.row(t) = decided.experts.row(g);
      routing.weights.row(t) = decided.weights.row(g);
      if (routing.logits.size() != 0) routing.logits.row(t) = decided.logits.row(g);
      if (routing.scores.size() != 0) routing.scores.row(t) = decided.scores.row(g);
    }
  }

  RouterT router_;
};

}  // namespace moe::inline MOE_ABI
