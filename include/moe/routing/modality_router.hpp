// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// ModalityRouter: a subset of the experts for each type of token.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
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

/// The gradients of what the routers of a ModalityRouter have learnt.
template <class RouterT>
struct ModalityGradients {
  std::vector<typename detail::GradientsOfRouter<RouterT>::Type> of_type;

  void set_zero() {
    for (auto& gradients : of_type) gradients.set_zero();
  }
};

/// A router for each type of token (text, image, ...), over experts of its own: type m has experts
/// first_m .. first_m + E_m - 1, where ranges may overlap. `RouteOptions::token_types` names the
/// type of each token.
///
/// Values  K is the largest of the routers'; a type with fewer leaves slots unused. A token's
///         logits are -infinity, and its scores 0, for the experts of other types.
/// Source  Lin et al. (2024), arXiv:2407.21770; Bao et al. (2021), arXiv:2111.02358.
template <Router RouterT>
class ModalityRouter {
 public:
  using Scalar = typename RouterT::Scalar;

  struct Subset {
    RouterT router;
    Index first_expert = 0;
  };

  /// Throws  std::invalid_argument if there is no subset or one leads beyond E; ShapeError if the
  ///         routers' widths differ.
  ModalityRouter(Index num_experts, std::vector<Subset> subsets)
      : num_experts_(num_experts), subsets_(std::move(subsets)) {
    constexpr const char* where = "ModalityRouter";
    detail::check(!subsets_.empty(), where, "there are no subsets");
    for (const Subset& subset : subsets_) {
      detail::check_size(where, "router.d_model()", d_model(), subset.router.d_model());
      detail::check(subset.first_expert >= 0 &&
                        subset.first_expert + subset.router.num_experts() <= num_experts_,
                    where, "a subset leads beyond num_experts");
    }
  }

  Index d_model() const noexcept { return subsets_.front().router.d_model(); }
  Index num_experts() const noexcept { return num_experts_; }
  Index top_k() const noexcept {
    Index most = 0;
    for (const Subset& subset : subsets_) most = std::max<Index>(most, subset.router.top_k());
    return most;
  }

  /// Shapes  x (T, D), options.token_types (T); routing becomes (T, K).
  /// Throws  ShapeError if sizes disagree; std::invalid_argument if a type is out of range, or the
  ///         routers differ in what a Routing has once only (score function, weight target ...).
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    constexpr const char* where = "ModalityRouter::route";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    check_types(where, x, options);
    routing.resize(x.rows(), num_experts(), top_k(), options);
    routing.experts.setConstant(no_expert);
    routing.weights.setZero();
    routing.logits.setConstant(-std::numeric_limits<Scalar>::infinity());
    routing.scores.setZero();
    bool is_first = true;
    for (std::size_t type = 0; type < subsets_.size(); ++type) {
      const std::vector<Index> tokens = tokens_of(type, options);
      if (tokens.empty()) continue;
      Routing<Scalar> part;
      route_subset(x, tokens, subsets_[type], options, part);
      if (is_first) {
        copy_rule(part, routing);
        is_first = false;
      }
      detail::check(has_rule_of(part, routing), where, "the routers' rules differ");
      scatter(part, tokens, subsets_[type].first_expert, routing);
    }
  }

  /// What the experts see in place of x (T, D): for each token the word of its type's router.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    check_types("ModalityRouter::hidden_states", x, options);
    GrowingMatrix<Scalar> of_type;
    bool differs = false;
    for (std::size_t type = 0; type < subsets_.size(); ++type) {
      const MatrixView<const Scalar> seen =
          detail::hidden_states(subsets_[type].router, x, options, of_type);
      if (seen.data() == x.data()) continue;
      if (!differs) {
        buffer.resize(x.rows(), x.cols());
        MatrixView<Scalar>(buffer).map() = x.map();
        differs = true;
      }
      for (Index t = 0; t < x.rows(); ++t)
        if (options.token_types[static_cast<std::size_t>(t)] == static_cast<std::int32_t>(type))
          std::copy_n(seen.row(t), x.cols(), MatrixView<Scalar>(buffer).row(t));
    }
    return differs ? MatrixView<const Scalar>(buffer) : x;
  }

  using Gradients = ModalityGradients<RouterT>;

  /// Zeros, to which `backward` adds, for each type.
  Gradients gradients() const requires DifferentiableRouter<RouterT> {
    Gradients gradients;
    for (const Subset& subset : subsets_) gradients.of_type.push_back(subset.router.gradients());
    return gradients;
  }

  /// The reverse of `route`, type by type. What losses gave with respect to logits and scores of
  /// experts of other types goes nowhere: these are constants.
  ///
  /// Throws  as the routers' backward; std::invalid_argument if a type is out of range, or the
  ///         caller supplies inputs.
  void backward(const RouterBackward<Scalar>& call,
                Gradients& gradients) const requires DifferentiableRouter<RouterT> {
    constexpr const char* where = "ModalityRouter::backward";
    check_backward(where, gradients);
    detail::check_outer_call(where, call, num_experts(), d_model());
    check_types(where, call.x, call.options);
    const Matrix<Scalar> d_routed = detail::gradient_of_routed(call);
    for (std::size_t type = 0; type < subsets_.size(); ++type) {
      const std::vector<Index> tokens = tokens_of(type, call.options);
      if (!tokens.empty())
        backward_of(subsets_[type], tokens, call, d_routed, gradients.of_type[type]);
    }
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where,
                      const Gradients& gradients) const requires DifferentiableRouter<RouterT> {
    detail::check_size(where, "gradients.of_type.size()", static_cast<Index>(subsets_.size()),
                       static_cast<Index>(gradients.of_type.size()));
    for (std::size_t type = 0; type < subsets_.size(); ++type)
      subsets_[type].router.check_backward(where, gradients.of_type[type]);
  }

 private:
  static std::vector<Index> tokens_of(std::size_t type, const RouteOptions& options) {
    std::vector<Index> tokens;
    for (std::size_t t = 0; t < options.token_types.size(); ++t)
      if (options.token_types[t] == static_cast<std::int32_t>(type))
        tokens.push_back(static_cast<Index>(t));
    return tokens;
  }

  void backward_of(const Subset& subset, const std::vector<Index>& tokens,
                   const RouterBackward<Scalar>& call, const Matrix<Scalar>& d_routed,
                   typename detail::GradientsOfRouter<RouterT>::Type& gradients) const {
    const Index experts = subset.router.num_experts();
    const Index top_k = std::min<Index>(subset.router.top_k(), call.routing.top_k());
    const Index first = subset.first_expert;
    detail::PartBackward<Scalar> part(call, static_cast<Index>(tokens.size()), experts, top_k);
    Index r = 0;
    for (const Index t : tokens) {
      for (Index k = 0; k < top_k; ++k) {
        const Index expert = call.routing.experts(t, k) - first;
        if (expert < 0 || expert >= experts) continue;
        part.routing.experts(r, k) = static_cast<ExpertIndex>(expert);
        part.routing.weights(r, k) = call.routing.weights(t, k);
        part.d_routed(r, k) = d_routed(t, k);
      }
      part.x.row(r) = call.x.map().row(t);
      part.routing.logits.row(r) = call.routing.logits.row(t).segment(first, experts);
      part.routing.scores.row(r) = call.routing.scores.row(t).segment(first, experts);
      part.d_logits.row(r) = call.d_logits.map().row(t).segment(first, experts);
      if (!call.d_scored.empty())
        part.d_scored.row(r) = call.d_scored.map().row(t).segment(first, experts);
      ++r;
    }
    subset.router.backward(part.call(call.frozen), gradients);
    r = 0;
    for (const Index t : tokens) {
      call.dx.map().row(t) += part.dx.row(r);
      call.d_logits.map().row(t).segment(first, experts) = part.d_logits.row(r);
      ++r;
    }
  }

  void check_types(const char* where, MatrixView<const Scalar> x,
                   const RouteOptions& options) const {
    detail::check_size(where, "options.token_types.size()", x.rows(),
                       static_cast<Index>(options.token_types.size()));
    for (const std::int32_t type : options.token_types)
      detail::check(type >= 0 && static_cast<std::size_t>(type) < subsets_.size(), where,
                    "a token type is out of range");
  }

  void route_subset(MatrixView<const Scalar> x, const std::vector<Index>& tokens,
                    const Subset& subset, const RouteOptions& options,
                    Routing<Scalar>& part) const {
    Matrix<Scalar> rows(static_cast<Index>(tokens.size()), d_model());
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::copy_n(x.row(tokens[i]), d_model(), rows.row(static_cast<Index>(i)).data());
      if (!options.token_ids.empty())
        ids.push_back(options.token_ids[static_cast<std::size_t>(tokens[i])]);
    }
    RouteOptions inner = options;
    inner.token_ids = ids;
    inner.token_types = {};
    inner.token_groups = {};
    subset.router.route(rows, inner, part);
  }

  /// What the scores of experts of other subsets are: none, or no logit.
  static Scalar score_of_others(ScoreFunction function) noexcept {
    return function == ScoreFunction::identity ? -std::numeric_limits<Scalar>::infinity()
                                               : Scalar(0);
  }

  static void copy_rule(const Routing<Scalar>& from, Routing<Scalar>& to) {
    to.score_function = from.score_function;
    to.weight_target = from.weight_target;
    to.input_scale = from.input_scale;
    to.renormalization = from.renormalization;
    to.scale_after_drop = from.scale_after_drop;
  }

  static bool has_rule_of(const Routing<Scalar>& a, const Routing<Scalar>& b) {
    return a.score_function == b.score_function && a.weight_target == b.weight_target &&
           a.input_scale == b.input_scale && a.scale_after_drop == b.scale_after_drop &&
           a.renormalization == b.renormalization;
  }

  static void scatter(const Routing<Scalar>& part, const std::vector<Index>& tokens, Index first,
                      Routing<Scalar>& routing) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto r = static_cast<Index>(i);
      const Index t = tokens[i];
      for (Index k = 0; k < part.top_k(); ++k) {
        const ExpertIndex expert = part.experts(r, k);
        if (expert == no_expert) continue;
        routing.experts(t, k) = expert + static_cast<ExpertIndex>(first);
        routing.weights(t, k) = part.weights(r, k);
      }
      if (routing.logits.size() != 0 && part.logits.size() != 0)
        routing.logits.row(t).segment(first, part.num_experts) = part.logits.row(r);
      if (routing.scores.size() != 0)
        routing.scores.row(t).setConstant(score_of_others(part.score_function));
      if (routing.scores.size() != 0 && part.scores.size() != 0)
        routing.scores.row(t).segment(first, part.num_experts) = part.scores.row(r);
    }
  }

  Index num_experts_;
  std::vector<Subset> subsets_;
};

}  // namespace moe::inline MOE_ABI
