// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Balanced assignment of tokens to experts by auction.
#pragma once

#include <cmath>
#include <cstddef>
#include <deque>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI {

/// Gives every token one expert, no expert more than ceil(T / E) tokens, such that the sum of the
/// scores is near the largest possible. Tokens bid for places of the experts in turn; a bid raises
/// the price of the place by at least `epsilon`.
///
/// Shapes  score (T, E); result (T).
/// Values  the sum is within T epsilon of the optimum. An epsilon of 0 stands for a fiftieth of the
///         range of the scores, at least 1e-4. Scores that are not finite count as the smallest
///         finite one.
/// Ties    lower expert index first.
/// Cost    O(T (range / epsilon) (E + log T)) at worst.
/// Throws  std::invalid_argument if there are tokens but no experts, or epsilon is negative.
/// Source  Bertsekas (1992), "Auction algorithms for network flow problems"; Lewis et al. (2021),
///         arXiv:2103.16716.
template <class Scalar>
std::vector<ExpertIndex> balanced_assignment(MatrixView<const Scalar> score, double epsilon = 0) {
  constexpr const char* where = "balanced_assignment";
  const Index tokens = score.rows();
  const Index experts = score.cols();
  std::vector<ExpertIndex> chosen(static_cast<std::size_t>(tokens), no_expert);
  if (tokens == 0) return chosen;
  detail::check(experts > 0, where, "there are no experts");
  detail::check(std::isfinite(epsilon) && epsilon >= 0, where,
                "epsilon must be finite and not negative");
  double least = std::numeric_limits<double>::infinity();
  double most = -least;
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) {
      const auto value = static_cast<double>(score(t, e));
      if (!std::isfinite(value)) continue;
      least = std::fmin(least, value);
      most = std::fmax(most, value);
    }
  }
  if (!(least <= most)) least = most = 0;
  if (epsilon == 0) epsilon = std::fmax((most - least) / 50, 1e-4);

  // A place is worth the score less its price, so among the places of one expert only the cheapest
  // and the one after it matter. Prices start at 0, which keeps the bound where places are left.
  struct Place {
    double price;
    Index token;  // -1 while it is free
  };
  const auto is_dearer = [](const Place& a, const Place& b) { return a.price > b.price; };
  using Places = std::priority_queue<Place, std::vector<Place>, decltype(is_dearer)>;
  const Index per_expert = (tokens + experts - 1) / experts;
  std::vector<Places> places(
      static_cast<std::size_t>(experts),
      Places(is_dearer, std::vector<Place>(static_cast<std::size_t>(per_expert), Place{0, -1})));
  const double nothing = -std::numeric_limits<double>::infinity();

  std::deque<Index> bidders;
  for (Index t = 0; t < tokens; ++t) bidders.push_back(t);
  while (!bidders.empty()) {
    const Index t = bidders.front();
    bidders.pop_front();
    double best = nothing;
    double second = nothing;
    Index expert = 0;
    for (Index e = 0; e < experts; ++e) {
      const auto raw = static_cast<double>(score(t, e));
      const double value =
          (std::isfinite(raw) ? raw - least : 0) - places[static_cast<std::size_t>(e)].top().price;
      if (value > best) {
        second = best;
        best = value;
        expert = e;
      } else if (value > second) {
        second = value;
      }
    }
    Places& of_expert = places[static_cast<std::size_t>(expert)];
    Place place = of_expert.top();
    of_expert.pop();
    const double own_price = place.price;
    if (!of_expert.empty())  // The same expert's next place is an alternative, too.
      second = std::fmax(second, best + own_price - of_expert.top().price);
    if (place.token >= 0) bidders.push_back(place.token);
    // With a single place in all, there is nothing to outbid.
    place.price += (second > nothing ? best - second : 0) + epsilon;
    place.token = t;
    of_expert.push(place);
  }
  for (Index e = 0; e < experts; ++e) {
    for (Places& of_expert = places[static_cast<std::size_t>(e)]; !of_expert.empty();
         of_expert.pop())
      if (of_expert.top().token >= 0)
        chosen[static_cast<std::size_t>(of_expert.top().token)] = static_cast<ExpertIndex>(e);
  }
  return chosen;
}

}  // namespace moe::inline MOE_ABI
