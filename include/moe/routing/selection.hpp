// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Choosing the best experts of one token.
#pragma once

#include <cmath>
#include <limits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI {

/// Selects the `k` largest of n keys by insertion.
///
/// Shapes  key (n), chosen (k), k <= n.
/// Values  chosen is ordered from the largest key down. Keys must not be NaN.
/// Ties    lower index first.
/// Cost    O(n) compares plus O(k) moves for each key that enters.
template <class Scalar>
void select_top_k(const Scalar* key, Index n, Index k, ExpertIndex* chosen) {
  MOE_ASSERT(k <= n);
  if (k == 0) return;
  // An equal key that stands further left was met earlier, so strict compares keep it ahead.
  const auto insert = [&](Index i, Index place) {
    for (; place > 0 && key[i] > key[chosen[place - 1]]; --place) chosen[place] = chosen[place - 1];
    chosen[place] = static_cast<ExpertIndex>(i);
  };
  for (Index i = 0; i < k; ++i) insert(i, i);
  // Few of the others exceed the k-th: the kernel looks for them some lanes at a time.
  const auto find_above = kernels::row_kernels<Scalar>().find_above;
  for (Index i = k; (i = find_above(key, i, n, key[chosen[k - 1]])) < n; ++i) insert(i, k - 1);
}

namespace detail {

/// The key of a NaN: below every number, above -infinity, which is left for what cannot be chosen.
template <class Scalar>
inline constexpr Scalar nan_key = std::numeric_limits<Scalar>::lowest();

/// The order in which selection sees scores: numbers, -infinity among them, then NaN.
template <class Scalar>
Scalar selection_key(Scalar score) noexcept {
  if (std::isnan(score)) return nan_key<Scalar>;
  return std::fmax(score, std::nextafter(nan_key<Scalar>, Scalar(0)));
}

/// The score of one group of n selection keys.
template <class Scalar>
Scalar group_score(const GroupRule& rule, const Scalar* key, Index n) noexcept {
  // The sum runs over the best keys in descending order. Each round finds the best key after the
  // previous one in (key, index) order; groups have a handful of experts, and `top` is 2.
  const Index top = rule.score == GroupScore::maximum ? 1 : rule.top;
  Scalar sum = 0;
  Index last = -1;
  for (Index round = 0; round < top; ++round) {
    Index best = -1;
    for (Index i = 0; i < n; ++i) {
      const bool taken = last >= 0 && (key[i] > key[last] || (key[i] == key[last] && i <= last));
      if (!taken && (best < 0 || key[i] > key[best])) best = i;
    }
    sum += key[best];
    last = best;
  }
  return sum;
}

/// Overwrites the keys of the groups that are not kept; a fill of zero makes no number of a NaN.
///
/// Shapes  key (E), score (groups.count) and kept (groups.kept) are scratch.
template <class Scalar>
void mask_groups(const GroupRule& rule, Index num_experts, Scalar* key, Scalar* score,
                 ExpertIndex* kept) {
  const Index size = num_experts / rule.count;
  for (Index g = 0; g < rule.count; ++g)
    score[g] = selection_key(group_score(rule, key + g * size, size));
  select_top_k(score, rule.count, rule.kept, kept);
  const Scalar fill =
      rule.fill == GroupFill::zero ? Scalar(0) : -std::numeric_limits<Scalar>::infinity();
  for (Index g = 0; g < rule.count; ++g) {
    bool is_kept = false;
    for (Index i = 0; i < rule.kept; ++i) is_kept = is_kept || kept[i] == g;
    if (is_kept) continue;
    for (Index i = g * size; i < (g + 1) * size; ++i)
      if (rule.fill == GroupFill::negative_infinity || key[i] > nan_key<Scalar>) key[i] = fill;
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
