// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// HashRouter: experts by a table of token ids.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/token_choice.hpp"

namespace moe::inline MOE_ABI {

/// A table that gives every vocabulary id K distinct experts at random.
///
/// Shapes  result (V, K).
/// Throws  std::invalid_argument unless 0 < K <= E and V > 0.
template <BitGenerator Generator>
Matrix<ExpertIndex> random_hash_table(Index vocabulary, Index num_experts, Index top_k,
                                      Generator& generator) {
  constexpr const char* where = "random_hash_table";
  detail::check(vocabulary > 0, where, "vocabulary must be positive");
  detail::check(top_k > 0 && top_k <= num_experts, where, "top_k must be from 1 to num_experts");
  const std::uint64_t seed = detail::draw_seed(generator);
  Matrix<ExpertIndex> table(vocabulary, top_k);
  std::vector<ExpertIndex> experts(static_cast<std::size_t>(num_experts));
  std::uint64_t position = 0;
  for (Index v = 0; v < vocabulary; ++v) {
    std::iota(experts.begin(), experts.end(), 0);
    for (Index k = 0; k < top_k; ++k) {  // The first K steps of a shuffle.
      const auto left = static_cast<double>(num_experts - k);
      const auto other = k + static_cast<Index>(detail::uniform(seed, position++) * left);
      std::swap(experts[static_cast<std::size_t>(k)], experts[static_cast<std::size_t>(other)]);
      table(v, k) = experts[static_cast<std::size_t>(k)];
    }
  }
  return table;
}

/// A table of one expert for each id, such that the experts see about equally many tokens: ids are
/// taken by falling count, each goes to the expert with the least so far.
///
/// Shapes  counts (V), how often each id occurs; result (V, 1).
/// Throws  std::invalid_argument if a count is negative, or E is not positive.
/// Source  Roller et al. (2021), section 3.1, arXiv:2106.04426.
inline Matrix<ExpertIndex> balanced_hash_table(std::span<const Index> counts, Index num_experts) {
  detail::check(num_experts > 0, "balanced_hash_table", "num_experts must be positive");
  for (const Index count : counts)
    detail::check(count >= 0, "balanced_hash_table", "a count is negative");
  std::vector<std::size_t> ids(counts.size());
  std::iota(ids.begin(), ids.end(), std::size_t{0});
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
  std::vector<Index> load(static_cast<std::size_t>(num_experts), 0);
  Matrix<ExpertIndex> table(static_cast<Index>(counts.size()), 1);
  for (const std::size_t id : ids) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += counts[id];
    table(static_cast<Index>(id), 0) = static_cast<ExpertIndex>(least - load.begin());
  }
  return table;
}

/// Experts of a token by the table's row of its vocabulary id, which `RouteOptions::token_ids`
/// gives. Weights are 1 / K; or, where the router has a weight, those that a RoutingRule makes of
/// its scores for the experts of the table (no selection bias takes part, nor do the rule's
/// groups).
///
/// Source  Roller et al. (2021), arXiv:2106.04426; with weights: the first layers of DeepSeek-V4.
template <class ScalarT>
class HashRouter {
 public:
  using Scalar = ScalarT;

  /// Shapes  table (V, K), entries 0 .. E-1, those of a row distinct.
  /// Throws  std::invalid_argument if a size or an entry makes no sense.
  HashRouter(Index d_model, Index num_experts, Matrix<ExpertIndex> table)
      : d_model_(d_model), num_experts_(num_experts), table_(std::move(table)) {
    constexpr const char* where = "HashRouter";
    detail::check(d_model_ > 0, where, "d_model must be positive");
    detail::check(num_experts_ > 0, where, "num_experts must be positive");
    detail::check(table_.rows() > 0 && table_.cols() > 0, where, "the table is empty");
    std::vector<Index> last_row(static_cast<std::size_t>(num_experts_), -1);  // that named it
    for (Index v = 0; v < table_.rows(); ++v) {
      for (Index k = 0; k < table_.cols(); ++k) {
        const ExpertIndex expert = table_(v, k);
        detail::check(expert >= 0 && expert < num_experts_, where,
                      "the table names an expert that is out of range");
        Index& last = last_row[static_cast<std::size_t>(expert)];
        detail::check(last != v, where, "the table names an expert twice in a row");
        last = v;
      }
    }
  }

  /// Shapes  weight (E, D).
  /// Throws  as above; std::invalid_argument if the rule has another form of logits than linear, or
  ///         noise, jitter or a limit, which have no place here.
  HashRouter(Matrix<Scalar> weight, const RoutingRule& rule, Matrix<ExpertIndex> table)
      : HashRouter(weight.cols(), weight.rows(), std::move(table)) {
    constexpr const char* where = "HashRouter";
    detail::check_rule(where, rule, num_experts_, top_k());
    detail::check(rule.logits.form == LogitForm::linear && rule.logits.standard_deviation == 0 &&
                      rule.logits.noise == 0,
                  where, "logits are linear, without scaling and noise");
    detail::check(rule.jitter.target == JitterTarget::none, where, "there is no jitter");
    detail::check(rule.limit.kind == ChoiceLimitKind::none, where, "the table has no limit");
    weight_ = detail::LinearMap<Scalar>(weight);
    rule_ = rule;
  }

  Index d_model() const noexcept { return d_model_; }
  Index num_experts() const noexcept { return num_experts_; }
  Index top_k() const noexcept { return table_.cols(); }
  const Matrix<ExpertIndex>& table() const noexcept { return table_; }

  /// Shapes  x (T, D), options.token_ids (T); routing becomes (T, K), and (T, E) where the router
  ///         has a weight and `options` keeps them.
  /// Throws  ShapeError if sizes disagree; std::invalid_argument if an id is out of range.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    constexpr const char* where = "HashRouter::route";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "options.token_ids.size()", x.rows(),
                       static_cast<Index>(options.token_ids.size()));
    for (const std::int32_t id : options.token_ids)
      detail::check(id >= 0 && id < table_.rows(), where, "a token id is out of range");
    if (!rule_) {
      options.keep_logits = false;
      options.keep_scores = false;
    }
    routing.resize(x.rows(), num_experts(), top_k(), options);
    for (Index t = 0; t < x.rows(); ++t)
      routing.experts.row(t) = table_.row(options.token_ids[static_cast<std::size_t>(t)]);
    if (!rule_) {
      routing.weights.setConstant(1 / static_cast<Scalar>(top_k()));
      return;
    }
    routing.score_function = rule_->score;
    routing.weight_target = rule_->weight_target;
    routing.input_scale = rule_->input_scale;
    if (rule_->renormalization.after_drop) {
      routing.renormalization = rule_->renormalization;
      routing.scale_after_drop = rule_->scale;
    }
    detail::for_each_logits(x, weight_, [&](Index t, const Scalar* z) {
      std::vector<Scalar> score(static_cast<std::size_t>(num_experts()));
      score_logits(rule_->score, z, num_experts(), score.data());
      weigh_experts(*rule_, z, score.data(), num_experts(), detail::row_data(routing.experts, t),
                    top_k(), detail::row_data(routing.weights, t));
      if (options.keep_logits) std::copy_n(z, num_experts(), detail::row_data(routing.logits, t));
      if (options.keep_scores)
        std::copy_n(score.data(), num_experts(), detail::row_data(routing.scores, t));
    });
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds; nothing where the router has no weight.
  Gradients gradients() const {
    return {.weight = Matrix<Scalar>::Zero(weight_.outputs(), weight_.inner())};
  }

  /// The reverse of `route`, through the weights of the table's experts.
  ///
  /// Throws  ShapeError if a router with a weight has routed without logits and scores, or a size
  ///         disagrees.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "HashRouter::backward";
    check_backward(where, gradients);
    if (rule_) detail::backward_of_rule(where, *rule_, call, weight_.weight(), gradients.weight);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    detail::check_weight_gradient(where, gradients.weight, weight_.outputs(), weight_.inner());
  }

 private:
  Index d_model_;
  Index num_experts_;
  Matrix<ExpertIndex> table_;         // (V, K)
  detail::LinearMap<Scalar> weight_;  // (E, D) or empty
  std::optional<RoutingRule> rule_;
};

}  // namespace moe::inline MOE_ABI
