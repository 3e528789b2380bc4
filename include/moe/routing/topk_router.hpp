// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// TopKRouter: every token-choice family with a linear router.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/product.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/token_choice.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a TopKRouter.
struct RouterConfig {
  Index d_model = 0;
  Index num_experts = 0;
  Index top_k = 0;
  RoutingRule rule = {.renormalization = {.kind = Renormalization::sum}};
};

/// What a TopKRouter has learnt.
///
/// Shapes  weight (E, D); bias, selection_bias (E) or empty.
template <class Scalar>
struct RouterWeights {
  Matrix<Scalar> weight = {};          // (E, D)
  Vector<Scalar> bias = {};            // (E), added to the logits
  Vector<Scalar> selection_bias = {};  // (E), added to the scores for selection only
};

/// logits = x weight^T + bias, then a RoutingRule for each token.
template <class ScalarT>
class TopKRouter {
 public:
  using Scalar = ScalarT;

  /// Throws  std::invalid_argument if a size is not positive, K > E, or the rule cannot work;
  ///         ShapeError if the weights do not have the sizes of `config`.
  TopKRouter(const RouterConfig& config, RouterWeights<Scalar> weights)
      : config_(config), weights_(std::move(weights)) {
    constexpr const char* where = "TopKRouter";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.num_experts > 0, where, "num_experts must be positive");
    detail::check(config_.top_k > 0, where, "top_k must be positive");
    detail::check(config_.top_k <= config_.num_experts, where, "top_k must not exceed num_experts");
    detail::check_rule(where, config_.rule, config_.num_experts, config_.top_k);
    detail::check(std::isfinite(static_cast<Scalar>(config_.rule.scale)), where,
                  "scale is too large for the scalar type");
    detail::check_size(where, "weight.rows()", config_.num_experts, weights_.weight.rows());
    detail::check_size(where, "weight.cols()", config_.d_model, weights_.weight.cols());
    if (weights_.bias.size() != 0)
      detail::check_size(where, "bias.size()", config_.num_experts, weights_.bias.size());
    if (weights_.selection_bias.size() != 0)
      detail::check_size(where, "selection_bias.size()", config_.num_experts,
                         weights_.selection_bias.size());
  }

  /// A router whose logits have about unit variance for a unit-variance input.
  template <std::uniform_random_bit_generator Generator>
  static TopKRouter random(const RouterConfig& config, Generator& generator) {
    RouterWeights<Scalar> weights;
    weights.weight.resize(std::max<Index>(config.num_experts, 0),
                          std::max<Index>(config.d_model, 0));
    detail::fill_uniform(weights.weight.data(), weights.weight.size(), config.d_model,
                         detail::draw_seed(generator));
    return TopKRouter(config, std::move(weights));
  }

  Index d_model() const noexcept { return config_.d_model; }
  Index num_experts() const noexcept { return config_.num_experts; }
  Index top_k() const noexcept { return config_.top_k; }
  const RoutingRule& rule() const noexcept { return config_.rule; }
  const RouterWeights<Scalar>& weights() const noexcept { return weights_; }

  /// Routes every token.
  ///
  /// Shapes  x (T, D); routing becomes (T, K) and, where `options` keeps them, (T, E).
  /// Ties    lower expert index first; NaN as for `choose_experts`.
  /// Cost    2 T E D flop, parallel over blocks of tokens.
  /// Throws  ShapeError if x is not D wide.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    detail::check_size("TopKRouter::route", "x.cols()", d_model(), x.cols());
    routing.resize(x.rows(), num_experts(), top_k(), options);
    routing.score_function = config_.rule.score;
    routing.weight_target = config_.rule.weight_target;
    parallel::for_each_block(x.rows(), detail::tile_rows,
                             [&](Index begin, Index end) { route_tile(x, begin, end, routing); });
  }

 private:
  void route_tile(MatrixView<const Scalar> x, Index begin, Index end,
                  Routing<Scalar>& routing) const {
    const Index rows = end - begin;
    const Index padded = detail::padded_rows(rows, d_model(), num_experts());
    Matrix<Scalar> tile = Matrix<Scalar>::Zero(padded, d_model());
    tile.topRows(rows) = x.middle_rows(begin, rows).map();
    Matrix<Scalar> logits(padded, num_experts());
    detail::tile_product(tile.data(), padded, d_model(), weights_.weight.data(), num_experts(),
                         logits.data());
    if (weights_.bias.size() != 0) logits.rowwise() += weights_.bias.transpose();

    const Scalar* const selection_bias =
        weights_.selection_bias.size() != 0 ? weights_.selection_bias.data() : nullptr;
    TokenChoiceScratch<Scalar> scratch(config_.rule, num_experts());
    std::vector<Scalar> scores(static_cast<std::size_t>(num_experts()));
    const bool keep_logits = routing.logits.size() != 0;
    const bool keep_scores = routing.scores.size() != 0;
    for (Index t = begin; t < end; ++t) {
      const Scalar* const logit = logits.data() + (t - begin) * num_experts();
      Scalar* const score = keep_scores ? routing.scores.row(t).data() : scores.data();
      choose_experts(config_.rule, logit, selection_bias, num_experts(), top_k(), scratch, score,
                     routing.experts.row(t).data(), routing.weights.row(t).data());
      if (keep_logits) std::copy_n(logit, num_experts(), routing.logits.row(t).data());
    }
  }

  RouterConfig config_;
  RouterWeights<Scalar> weights_;
};

static_assert(Router<TopKRouter<float>> && Router<TopKRouter<double>>);

}  // namespace moe::inline MOE_ABI
