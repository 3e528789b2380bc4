// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Building and restricting a DispatchPlan.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// How many rows an expert takes at most. The default has no limit.
///
/// Drops   by position: an expert keeps the choices of the earliest tokens; an earlier slot of the
///         same token comes first.
struct Capacity {
  double factor = 0;  ///< limit = ceil(factor * T * K / E), 0 for no limit
  Index minimum = 0;  ///< the limit is never less than this

  static constexpr Index unlimited = std::numeric_limits<Index>::max();

  /// The limit for T tokens with K choices each among E experts.
  Index rows(Index tokens, Index top_k, Index num_experts) const {
    if (factor == 0 || num_experts <= 0) return unlimited;
    // In this order every step is exact where factor * T * K and the result are whole numbers.
    const double choices = static_cast<double>(tokens) * static_cast<double>(top_k);
    const double limit = std::ceil(factor * choices / static_cast<double>(num_experts));
    if (limit >= 0x1p62) return unlimited;
    return std::max(static_cast<Index>(limit), minimum);
  }
};

namespace detail {

inline void check_capacity(const char* where, const Capacity& capacity) {
  check(std::isfinite(capacity.factor) && capacity.factor >= 0, where,
        "capacity.factor must be finite and not negative");
  check(capacity.minimum >= 0, where, "capacity.minimum must not be negative");
}

/// Tokens of one block of the counting sort. Blocks are fixed by T, so the plan is the same for any
/// number of threads.
inline constexpr Index plan_block_tokens = 512;

/// Fills plan.offsets, and gives the place of the first choice of each expert in each block.
///
/// Shapes  result (blocks, E).
template <class Scalar>
Matrix<std::int32_t> count_choices(const Routing<Scalar>& routing, Index limit,
                                   DispatchPlan& plan) {
  const Index blocks = (routing.tokens() + plan_block_tokens - 1) / plan_block_tokens;
  Matrix<std::int32_t> place = Matrix<std::int32_t>::Zero(blocks, routing.num_experts);
  parallel::for_each_block(routing.tokens(), plan_block_tokens, [&](Index begin, Index end) {
    auto count = place.row(begin / plan_block_tokens);
    for (Index t = begin; t < end; ++t)
      for (Index k = 0; k < routing.top_k(); ++k) ++count[routing.experts(t, k)];
  });
  plan.offsets.assign(static_cast<std::size_t>(routing.num_experts) + 1, 0);
  for (Index e = 0; e < routing.num_experts; ++e) {
    std::int32_t before = 0;
    for (Index b = 0; b < blocks; ++b) {
      const std::int32_t count = place(b, e);
      place(b, e) = before;
      before += count;
    }
    const auto i = static_cast<std::size_t>(e);
    plan.offsets[i + 1] = plan.offsets[i] + std::min<Index>(before, limit);
  }
  return place;
}

/// Gives every choice its row or drops it.
template <class Scalar>
void place_choices(const Routing<Scalar>& routing, Index limit, Matrix<std::int32_t>& next_place,
                   DispatchPlan& plan) {
  std::vector<std::vector<TokenSlot>> dropped(static_cast<std::size_t>(next_place.rows()));
  parallel::for_each_block(routing.tokens(), plan_block_tokens, [&](Index begin, Index end) {
    const Index block = begin / plan_block_tokens;
    for (Index t = begin; t < end; ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        const Index expert = routing.experts(t, k);
        const Index place = next_place(block, expert)++;
        const TokenSlot choice{static_cast<std::int32_t>(t), static_cast<std::int32_t>(k)};
        std::int32_t row = DispatchPlan::no_row;
        if (place < limit) {
          row = static_cast<std::int32_t>(plan.first_row(expert) + place);
          plan.rows[static_cast<std::size_t>(row)] = choice;
        } else {
          dropped[static_cast<std::size_t>(block)].push_back(choice);
        }
        plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)] = row;
      }
    }
  });
  plan.dropped.clear();
  for (const auto& choices : dropped)
    plan.dropped.insert(plan.dropped.end(), choices.begin(), choices.end());
}

/// make_plan with errors that begin with `where`.
template <class Scalar>
void make_plan(const char* where, const Routing<Scalar>& routing, const Capacity& capacity,
               DispatchPlan& plan) {
  check(routing.num_experts > 0, where, "routing.num_experts must be positive");
  check_capacity(where, capacity);
  check_routing(where, routing);
  check(routing.tokens() <= std::numeric_limits<std::int32_t>::max() / routing.top_k(), where,
        "T * K must be below 2^31");

  plan.tokens = routing.tokens();
  plan.top_k = routing.top_k();
  plan.num_experts = routing.num_experts;
  plan.first_expert = 0;
  const Index limit = capacity.rows(plan.tokens, plan.top_k, plan.num_experts);
  Matrix<std::int32_t> place = count_choices(routing, limit, plan);  // (blocks, E)
  plan.rows.resize(static_cast<std::size_t>(plan.offsets.back()));
  plan.row_of.resize(static_cast<std::size_t>(plan.tokens * plan.top_k));
  place_choices(routing, limit, place, plan);
}

}  // namespace detail

/// Groups the choices of `routing` by expert: a stable counting sort over blocks of tokens, each
/// with a histogram of its own.
///
/// Values  plan.rows of an expert are sorted by token, then slot; plan.dropped lists every choice
///         beyond the capacity, sorted the same way. Memory of `plan` is reused.
/// Cost    O(T K + E T / 512), parallel over blocks of tokens.
/// Throws  std::invalid_argument if an expert is out of range, a weight is not finite, the capacity
///         makes no sense, or T * K does not fit 31 bits; ShapeError if sizes disagree.
template <class Scalar>
void make_plan(const Routing<Scalar>& routing, const Capacity& capacity, DispatchPlan& plan) {
  detail::make_plan("make_plan", routing, capacity, plan);
}

/// The plan of a bank whose experts all see every token: expert e has the T rows from e * T on.
///
/// Throws  std::invalid_argument if E is not positive or T * E does not fit 31 bits.
inline void make_full_plan(Index tokens, Index num_experts, DispatchPlan& plan) {
  detail::check(num_experts > 0, "make_full_plan", "num_experts must be positive");
  detail::check(tokens >= 0, "make_full_plan", "tokens must not be negative");
  detail::check(tokens <= std::numeric_limits<std::int32_t>::max() / num_experts, "make_full_plan",
                "T * E must be below 2^31");
  plan.tokens = tokens;
  plan.top_k = num_experts;
  plan.num_experts = num_experts;
  plan.first_expert = 0;
  plan.dropped.clear();
  plan.offsets.resize(static_cast<std::size_t>(num_experts) + 1);
  for (Index e = 0; e <= num_experts; ++e) plan.offsets[static_cast<std::size_t>(e)] = e * tokens;
  plan.rows.resize(static_cast<std::size_t>(tokens * num_experts));
  plan.row_of.resize(plan.rows.size());
  for (Index e = 0; e < num_experts; ++e) {
    for (Index t = 0; t < tokens; ++t) {
      const Index row = e * tokens + t;
      plan.rows[static_cast<std::size_t>(row)] = {static_cast<std::int32_t>(t),
                                                  static_cast<std::int32_t>(e)};
      plan.row_of[static_cast<std::size_t>(t * num_experts + e)] = static_cast<std::int32_t>(row);
    }
  }
}

/// The part of a plan that experts first .. last - 1 work on, for a bank that holds only those.
/// Slots of other experts have no row in it, and `dropped` stays with the whole plan.
///
/// Throws  std::invalid_argument unless 0 <= first <= last <= plan.num_experts, or if the plan
///         leads outside of what it describes; ShapeError if its sizes disagree.
inline DispatchPlan restrict_plan(const DispatchPlan& plan, Index first, Index last) {
  detail::check_plan("restrict_plan", plan);
  detail::check(0 <= first && first <= last && last <= plan.num_experts, "restrict_plan",
                "the experts must be a range of the plan's");
  DispatchPlan part;
  part.tokens = plan.tokens;
  part.top_k = plan.top_k;
  part.num_experts = last - first;
  part.first_expert = plan.first_expert + first;
  const Index begin = plan.first_row(first);
  const Index end = plan.first_row(last);
  for (Index e = first; e <= last; ++e) part.offsets.push_back(plan.first_row(e) - begin);
  part.rows.assign(plan.rows.begin() + begin, plan.rows.begin() + end);
  part.row_of.reserve(plan.row_of.size());
  for (const std::int32_t row : plan.row_of)
    part.row_of.push_back(row >= begin && row < end ? static_cast<std::int32_t>(row - begin)
                                                    : DispatchPlan::no_row);
  return part;
}

}  // namespace moe::inline MOE_ABI
