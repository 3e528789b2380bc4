// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How evenly the experts are used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/losses/probabilities.hpp"
#include "moe/losses/token_mask.hpp"

namespace moe::inline MOE_ABI::metrics {

/// How many choices each expert got, before any drop.
///
/// Shapes  (E); the values sum to the used slots of the tokens that count, T * K if all are.
/// Throws  ShapeError if the mask is not T long.
template <class Scalar>
std::vector<Index> expert_load(const Routing<Scalar>& routing, losses::TokenMask mask = {}) {
  detail::check_routing("expert_load", routing);
  losses::detail::count_tokens("expert_load", mask, routing.tokens());
  std::vector<Index> load(static_cast<std::size_t>(routing.num_experts), 0);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < routing.top_k() && losses::detail::counts(mask, t); ++k)
      if (routing.experts(t, k) != no_expert)
        ++load[static_cast<std::size_t>(routing.experts(t, k))];
  return load;
}

/// MaxVio: the largest load over the mean, minus 1.
///
/// Values  0 at balance, E - 1 at worst; 0 where nothing was routed.
/// Source  Wang et al. (2024), arXiv:2408.15664.
inline double max_violation(std::span<const Index> load) {
  double sum = 0;
  double largest = 0;
  for (const Index count : load) {
    sum += static_cast<double>(count);
    largest = std::max(largest, static_cast<double>(count));
  }
  return sum > 0 ? largest * static_cast<double>(load.size()) / sum - 1 : 0;
}

/// CV: the population standard deviation of the loads over their mean.
///
/// Values  0 at balance; 0 where nothing was routed.
inline double coefficient_of_variation(std::span<const Index> load) {
  double sum = 0;
  for (const Index count : load) sum += static_cast<double>(count);
  if (sum == 0) return 0;
  const double mean = sum / static_cast<double>(load.size());
  double squares = 0;
  for (const Index count : load) {
    const double difference = static_cast<double>(count) - mean;
    squares += difference * difference;
  }
  return std::sqrt(squares / static_cast<double>(load.size())) / mean;
}

/// Entropy of the load distribution, in nats.
///
/// Values  ln E at balance, 0 where one expert takes all or nothing was routed.
inline double load_entropy(std::span<const Index> load) {
  double sum = 0;
  for (const Index count : load) sum += static_cast<double>(count);
  double entropy = 0;
  for (const Index count : load) {
    const double share = static_cast<double>(count) / sum;
    if (count > 0) entropy -= share * std::log(share);
  }
  return entropy;
}

/// Entropy of a token's router distribution in nats, -sum p ln(p + 1e-9), mean over the tokens.
/// Scores that are no distribution are made one as for the load-balancing loss.
///
/// Values  ln E for a router that has no preference, 0 for a certain one; 0 for T = 0.
/// Throws  std::invalid_argument if the routing was made without scores.
template <class Scalar>
double router_entropy(const Routing<Scalar>& routing) {
  detail::check_routing("router_entropy", routing);
  detail::check_has_scores("router_entropy", routing);
  double total = 0;
  Vector<double> probability(routing.num_experts);  // (E)
  for (Index t = 0; t < routing.tokens(); ++t) {
    detail::token_probabilities(routing, t, probability);
    total -= (probability.array() * (probability.array() + 1e-9).log()).sum();
  }
  return routing.tokens() > 0 ? total / static_cast<double>(routing.tokens()) : 0;
}

/// Share of the choices that the capacity dropped.
///
/// Values  0 to 1; 0 for T = 0.
inline double drop_fraction(const DispatchPlan& plan) {
  const Index choices = plan.tokens * plan.top_k;
  return choices > 0 ? static_cast<double>(plan.dropped.size()) / static_cast<double>(choices) : 0;
}

/// Share of the experts' places that have a row: rows / (E C), for a limit of C rows each.
inline double capacity_used(const DispatchPlan& plan, Index limit) {
  const double places = static_cast<double>(plan.num_experts) * static_cast<double>(limit);
  return places > 0 ? static_cast<double>(plan.num_rows()) / places : 0;
}

/// Mean over the tokens of the largest probability.
///
/// Values  1 / E for a router that has no preference, 1 for a certain one; 0 for T = 0.
/// Throws  std::invalid_argument if the routing was made without scores.
template <class Scalar>
double confidence(const Routing<Scalar>& routing) {
  detail::check_routing("confidence", routing);
  detail::check_has_scores("confidence", routing);
  double total = 0;
  Vector<double> probability(routing.num_experts);  // (E)
  for (Index t = 0; t < routing.tokens(); ++t) {
    detail::token_probabilities(routing, t, probability);
    total += probability.maxCoeff();
  }
  return routing.tokens() > 0 ? total / static_cast<double>(routing.tokens()) : 0;
}

/// For each token, the K-th best score minus the next: how near the choice was to another. Without
/// a selection bias and groups, it is what the scores would have to move by.
///
/// Shapes  result (T).
/// Values  not negative; infinity for K = E.
/// Throws  std::invalid_argument if the routing was made without scores.
template <class Scalar>
Vector<double> selection_margin(const Routing<Scalar>& routing) {
  detail::check_routing("selection_margin", routing);
  detail::check_has_scores("selection_margin", routing);
  Vector<double> margin =
      Vector<double>::Constant(routing.tokens(), std::numeric_limits<double>::infinity());
  if (routing.top_k() >= routing.num_experts) return margin;
  std::vector<Scalar> scores(static_cast<std::size_t>(routing.num_experts));
  for (Index t = 0; t < routing.tokens(); ++t) {
    std::copy_n(moe::detail::row_data(routing.scores, t), routing.num_experts, scores.begin());
    std::partial_sort(scores.begin(), scores.begin() + routing.top_k() + 1, scores.end(),
                      std::greater<>());
    const auto k = static_cast<std::size_t>(routing.top_k());
    margin[t] = static_cast<double>(scores[k - 1]) - static_cast<double>(scores[k]);
  }
  return margin;
}

/// How many tokens chose both of two experts.
///
/// Shapes  result (E, E), symmetric; the diagonal has the experts' loads.
template <class Scalar>
Matrix<Index> co_activation(const Routing<Scalar>& routing) {
  detail::check_routing("co_activation", routing);
  Matrix<Index> count = Matrix<Index>::Zero(routing.num_experts, routing.num_experts);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index a = 0; a < routing.top_k(); ++a)
      for (Index b = 0; b < routing.top_k(); ++b)
        if (routing.experts(t, a) != no_expert && routing.experts(t, b) != no_expert)
          ++count(routing.experts(t, a), routing.experts(t, b));
  return count;
}

/// Share of the choices that differ between two routings of the same tokens, slots in any order.
///
/// Values  0 to 1; 0 for T = 0.
/// Throws  ShapeError if the routings differ in size.
template <class Scalar>
double flips(const Routing<Scalar>& a, const Routing<Scalar>& b) {
  detail::check_size("flips", "tokens()", a.tokens(), b.tokens());
  detail::check_size("flips", "top_k()", a.top_k(), b.top_k());
  Index flipped = 0;
  for (Index t = 0; t < a.tokens(); ++t)
    for (Index k = 0; k < a.top_k(); ++k)
      if (!(b.experts.row(t).array() == a.experts(t, k)).any()) ++flipped;
  return a.experts.size() > 0 ? static_cast<double>(flipped) / static_cast<double>(a.experts.size())
                              : 0;
}

/// REAP saliency: for each expert, the mean over its rows of weight times the norm of its output.
///
/// Shapes  rows (N, D), as the experts gave them for `plan`; result (E).
/// Values  0 for an expert without rows.
/// Source  Lasby et al. (2025), arXiv:2510.13999.
template <class Scalar>
Vector<double> saliency(const Routing<Scalar>& routing, const DispatchPlan& plan,
                        std::type_identity_t<MatrixView<const Scalar>> rows) {
  detail::check_plan_of("saliency", routing, plan);
  detail::check_size("saliency", "rows.rows()", plan.num_rows(), rows.rows());
  Vector<double> sums = Vector<double>::Zero(plan.num_experts);
  for (Index e = 0; e < plan.num_experts; ++e) {
    for (Index r = plan.first_row(e); r < plan.first_row(e + 1); ++r) {
      const TokenSlot choice = plan.rows[static_cast<std::size_t>(r)];
      const double norm = rows.map().row(r).template cast<double>().norm();
      sums[e] += static_cast<double>(routing.weights(choice.token, choice.slot)) * norm;
    }
    if (plan.rows_of(e) > 0) sums[e] /= static_cast<double>(plan.rows_of(e));
  }
  return sums;
}

/// Loads of many batches.
class LoadHistory {
 public:
  /// Shapes  load (E).
  /// Throws  ShapeError if E differs from earlier batches.
  void add(std::span<const Index> load) {
    if (batches_ == 0) {
      total_.assign(load.size(), 0);
      idle_.assign(load.size(), 0);
    }
    detail::check_size("LoadHistory::add", "load.size()", static_cast<Index>(total_.size()),
                       static_cast<Index>(load.size()));
    for (std::size_t e = 0; e < load.size(); ++e) {
      total_[e] += load[e];
      idle_[e] = load[e] == 0 ? idle_[e] + 1 : 0;
    }
    sum_of_violations_ += max_violation(load);
    ++batches_;
  }

  Index batches() const noexcept { return batches_; }
  std::span<const Index> total() const noexcept { return total_; }

  /// MaxVio of all batches together.
  double global_violation() const { return max_violation(total_); }

  /// Mean over the batches of their MaxVio.
  double batch_violation() const {
    return batches_ > 0 ? sum_of_violations_ / static_cast<double>(batches_) : 0;
  }

  /// Experts that no token chose in the last `batches` batches, at least.
  std::vector<Index> dead_experts(Index batches) const {
    std::vector<Index> dead;
    for (std::size_t e = 0; e < idle_.size(); ++e)
      if (idle_[e] >= batches && batches > 0) dead.push_back(static_cast<Index>(e));
    return dead;
  }

 private:
  Index batches_ = 0;
  double sum_of_violations_ = 0;
  std::vector<Index> total_;  // (E)
  std::vector<Index> idle_;   // (E), batches since the last choice
};

}  // namespace moe::inline MOE_ABI::metrics
