// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// ExpertChoiceRouter: every expert takes its best tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of an ExpertChoiceRouter.
struct ExpertChoiceConfig {
  Index d_model = 0;
  Index num_experts = 0;
  /// Tokens that each expert takes of a group, at most all: formula tokens_ceil (paper, vmoe),
  /// tokens_round (flaxformer) or tokens_floor. `order` is not used.
  Capacity capacity = {.factor = 2, .formula = CapacityFormula::tokens_ceil};
  ScoreFunction score = ScoreFunction::softmax;
};

/// Scores of each token over the experts; each expert takes the C tokens of a group that score
/// highest with it, weighted by the score. A token goes to any number of experts, or none. Not for
/// decoders: what a token gets depends on later ones.
///
/// Values  the routing has as many slots as the busiest token needs, at least 1; a token's slots
///         stand in order of falling weight. `top_k()` is E, the most there can be.
/// Ties    earlier token first; a NaN logit scores 0.
/// Source  Zhou et al. (2022), arXiv:2202.09368; flaxformer `ExpertsChooseMaskedRouter`.
template <class ScalarT>
class ExpertChoiceRouter {
 public:
  using Scalar = ScalarT;

  /// Throws  std::invalid_argument if a size or the capacity makes no sense; ShapeError if the
  ///         weight is not (E, D).
  ExpertChoiceRouter(const ExpertChoiceConfig& config, Matrix<Scalar> weight)
      : config_(config), weight_(weight) {
    constexpr const char* where = "ExpertChoiceRouter";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.num_experts > 0, where, "num_experts must be positive");
    detail::check_capacity(where, config_.capacity);
    detail::check(!config_.capacity.is_unlimited(), where, "the capacity needs a limit");
    detail::check_size(where, "weight.rows()", config_.num_experts, weight_.outputs());
    detail::check_size(where, "weight.cols()", config_.d_model, weight_.inner());
  }

  Index d_model() const noexcept { return config_.d_model; }
  Index num_experts() const noexcept { return config_.num_experts; }
  Index top_k() const noexcept { return config_.num_experts; }
  /// A copy, unpacked.
  Matrix<Scalar> weight() const { return weight_.weight(); }

  /// Tokens that each expert takes of a group of T tokens.
  Index tokens_per_expert(Index tokens) const {
    return std::min(tokens, config_.capacity.rows(tokens, 1, num_experts()));
  }

  /// Shapes  x (T, D); routing becomes (T, K) and, where `options` keeps them, (T, E).
  /// Cost    2 T E D flop and E selections among T.
  /// Throws  ShapeError if x is not D wide.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    detail::check_size("ExpertChoiceRouter::route", "x.cols()", d_model(), x.cols());
    const Index tokens = x.rows();
    Matrix<Scalar> logits(options.keep_logits ? tokens : 0, num_experts());
    Matrix<Scalar> scores(tokens, num_experts());  // (T, E)
    detail::for_each_logits(x, weight_, [&](Index t, const Scalar* z) {
      if (options.keep_logits) std::copy_n(z, num_experts(), detail::row_data(logits, t));
      score_logits(config_.score, z, num_experts(), detail::row_data(scores, t));
    });

    std::vector<std::vector<Index>> chosen(static_cast<std::size_t>(num_experts()));
    parallel::for_each_task(num_experts(), [&](Index e, int /*thread*/) {
      take_tokens(scores, e, chosen[static_cast<std::size_t>(e)]);
    });
    std::vector<std::vector<ExpertIndex>> experts(static_cast<std::size_t>(tokens));
    for (Index e = 0; e < num_experts(); ++e)
      for (const Index t : chosen[static_cast<std::size_t>(e)])
        experts[static_cast<std::size_t>(t)].push_back(static_cast<ExpertIndex>(e));
    std::size_t most = 1;
    for (const auto& of_token : experts) most = std::max(most, of_token.size());

    routing.resize(tokens, num_experts(), static_cast<Index>(most), options);
    routing.score_function = config_.score;
    routing.experts.setConstant(no_expert);
    routing.weights.setZero();
    for (Index t = 0; t < tokens; ++t) {
      auto& of_token = experts[static_cast<std::size_t>(t)];
      std::stable_sort(of_token.begin(), of_token.end(),
                       [&](ExpertIndex a, ExpertIndex b) { return scores(t, a) > scores(t, b); });
      for (std::size_t k = 0; k < of_token.size(); ++k) {
        routing.experts(t, static_cast<Index>(k)) = of_token[k];
        routing.weights(t, static_cast<Index>(k)) = scores(t, of_token[k]);
      }
    }
    if (options.keep_logits) routing.logits = std::move(logits);
    if (options.keep_scores) routing.scores = std::move(scores);
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds.
  Gradients gradients() const { return {.weight = Matrix<Scalar>::Zero(num_experts(), d_model())}; }

  /// The reverse of `route`, through the scores of the tokens that were taken.
  ///
  /// Throws  ShapeError if the routing was made without logits and scores, or a size disagrees.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "ExpertChoiceRouter::backward";
    check_backward(where, gradients);
    detail::backward_of_rule(where, {.score = config_.score}, call, weight_.weight(),
                             gradients.weight);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    detail::check_weight_gradient(where, gradients.weight, num_experts(), d_model());
  }

 private:
  /// The tokens that expert e takes, in order.
  void take_tokens(MatrixView<const Scalar> scores, Index e, std::vector<Index>& taken) const {
    const Index tokens = scores.rows();
    const Index group = std::max<Index>(config_.capacity.group_size(tokens), 1);
    const Index count = tokens_per_expert(group);
    std::vector<Index> order;
    for (Index begin = 0; begin < tokens; begin += group) {
      order.resize(static_cast<std::size_t>(std::min(group, tokens - begin)));
      std::iota(order.begin(), order.end(), begin);
      const auto kept = std::min(order.size(), static_cast<std::size_t>(count));
      std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept),
                        order.end(), [&](Index a, Index b) {
                          return scores(a, e) != scores(b, e) ? scores(a, e) > scores(b, e) : a < b;
                        });
      taken.insert(taken.end(), order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept));
    }
  }

  ExpertChoiceConfig config_;
  detail::LinearMap<Scalar> weight_;  // (E, D)
};

}  // namespace moe::inline MOE_ABI
