// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How evenly the experts are used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/probabilities.hpp"

namespace moe::inline MOE_ABI::metrics {

/// How many choices each expert got, before any drop.
///
/// Shapes  (E); the values sum to T * K.
template <class Scalar>
std::vector<Index> expert_load(const Routing<Scalar>& routing) {
  detail::check_routing("expert_load", routing);
  std::vector<Index> load(static_cast<std::size_t>(routing.num_experts), 0);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < routing.top_k(); ++k)
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

}  // namespace moe::inline MOE_ABI::metrics
