// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Building a DispatchPlan.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/drops.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Tokens of one block of the counting sort. Blocks are fixed by T, so the plan is the same for any
/// number of threads.
inline constexpr Index plan_block_tokens = 512;

/// True if slot k of token t is used and was not dropped; `kept` (T * K) may be empty for all.
template <class Scalar>
bool is_kept(const Routing<Scalar>& routing, const std::vector<std::uint8_t>& kept, Index t,
             Index k) {
  return routing.experts(t, k) != no_expert &&
         (kept.empty() || kept[static_cast<std::size_t>(t * routing.top_k() + k)] != 0);
}

/// Fills plan.offsets, and gives the place of the first choice of each expert in each block.
///
/// Shapes  result (blocks, E), in this thread's memory.
template <class Scalar>
MatrixView<std::int32_t> count_choices(const Routing<Scalar>& routing,
                                       const std::vector<std::uint8_t>& kept, DispatchPlan& plan) {
  struct Places;
  const Index blocks = (routing.tokens() + plan_block_tokens - 1) / plan_block_tokens;
  const auto size = static_cast<std::size_t>(blocks * routing.num_experts);
  const MatrixView<std::int32_t> place(thread_buffer<Places, std::int32_t>(size), blocks,
                                       routing.num_experts);
  std::fill_n(place.data(), size, 0);
  parallel::for_each_block(routing.tokens(), plan_block_tokens, [&](Index begin, Index end) {
    std::int32_t* const count = place.row(begin / plan_block_tokens);
    for (Index t = begin; t < end; ++t)
      for (Index k = 0; k < routing.top_k(); ++k)
        if (is_kept(routing, kept, t, k)) ++count[routing.experts(t, k)];
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
    plan.offsets[i + 1] = plan.offsets[i] + before;
  }
  return place;
}

/// Gives every kept choice its row.
template <class Scalar>
void place_choices(const Routing<Scalar>& routing, const std::vector<std::uint8_t>& kept,
                   MatrixView<std::int32_t> next_place, DispatchPlan& plan) {
  parallel::for_each_block(routing.tokens(), plan_block_tokens, [&](Index begin, Index end) {
    const Index block = begin / plan_block_tokens;
    for (Index t = begin; t < end; ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        std::int32_t row = DispatchPlan::no_row;
        if (is_kept(routing, kept, t, k)) {
          const Index expert = routing.experts(t, k);
          row = static_cast<std::int32_t>(plan.first_row(expert) + next_place(block, expert)++);
          plan.rows[static_cast<std::size_t>(row)] = {static_cast<std::int32_t>(t),
                                                      static_cast<std::int32_t>(k)};
        }
        plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)] = row;
      }
    }
  });
}

/// make_plan with errors that begin with `where`.
template <class Scalar>
void make_plan(const char* where, const Routing<Scalar>& routing, const Capacity& capacity,
               DispatchPlan& plan, MatrixView<const Scalar> priority = {}) {
  check(routing.num_experts > 0, where, "routing.num_experts must be positive");
  check_capacity(where, capacity);
  check_routing(where, routing);
  check(routing.tokens() <= std::numeric_limits<std::int32_t>::max() / routing.top_k(), where,
        "T * K must be below 2^31");

  plan.tokens = routing.tokens();
  plan.top_k = routing.top_k();
  plan.num_experts = routing.num_experts;
  plan.first_expert = 0;
  const std::vector<std::uint8_t>& kept = kept_choices(where, routing, capacity, priority);
  const MatrixView<std::int32_t> place = count_choices(routing, kept, plan);  // (blocks, E)
  // By the most rows that these tokens could have, so that every routing finds room.
  plan.row_of.resize(static_cast<std::size_t>(plan.tokens * plan.top_k));
  plan.rows.reserve(plan.row_of.size());
  plan.rows.resize(static_cast<std::size_t>(plan.offsets.back()));
  place_choices(routing, kept, place, plan);
  plan.dropped.clear();
  plan.dropped.reserve(kept.size());
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto t = static_cast<Index>(i) / plan.top_k;
    const auto k = static_cast<Index>(i) % plan.top_k;
    if (kept[i] == 0 && routing.experts(t, k) != no_expert)
      plan.dropped.push_back({static_cast<std::int32_t>(t), static_cast<std::int32_t>(k)});
  }
}

}  // namespace detail

/// Groups the choices of `routing` by expert: a stable counting sort over blocks of tokens, each
/// with a histogram of its own, after the capacity's order has dropped what is too much.
///
/// Shapes  priority (T, E), for the random order: an expert keeps the choices with the largest
///         entries; empty to draw them from the capacity's seed.
/// Values  plan.rows of an expert are sorted by token, then slot; plan.dropped lists every choice
///         beyond the capacity, sorted the same way. Memory of `plan` is reused.
/// Cost    O(T K + E T / 512), parallel over blocks of tokens; a capacity adds O(T K), and the
///         orders other than by position a sort.
/// Throws  std::invalid_argument if an expert is out of range, a weight is not finite, the capacity
///         makes no sense, T * K does not fit 31 bits, or batch priority meets a routing without
///         scores; ShapeError if sizes disagree.
template <class Scalar>
void make_plan(const Routing<Scalar>& routing, const Capacity& capacity, DispatchPlan& plan,
               std::type_identity_t<MatrixView<const Scalar>> priority = {}) {
  detail::make_plan("make_plan", routing, capacity, plan, priority);
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

}  // namespace moe::inline MOE_ABI
