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
    std::vector<Index> names = group;  // However large, names need no rows between them.
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (Index& g : group) g = std::lower_bound(names.begin(), names.end(), g) - names.begin();
    const auto groups = static_cast<Index>(names.size());
    Matrix<Scalar> means = Matrix<Scalar>::Zero(groups, d_model());  // (G, D)
    std::vector<Index> counts(static_cast<std::size_t>(groups), 0);
    for (Index t = 0; t < x.rows(); ++t) {
      const Index g = group[static_cast<std::size_t>(t)];
      means.row(g) += x.map().row(t);
      ++counts[static_cast<std::size_t>(g)];
    }
    for (Index g = 0; g < groups; ++g)
      means.row(g) /= static_cast<Scalar>(std::max<Index>(counts[static_cast<std::size_t>(g)], 1));
    spread(means, group, options, routing);
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
