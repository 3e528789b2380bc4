// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// DispatchPlan: the rows of every expert. A plain value; `make_plan` fills it from a Routing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// A choice: slot `slot` of token `token`.
struct TokenSlot {
  std::int32_t token = 0;
  std::int32_t slot = 0;

  friend bool operator==(const TokenSlot&, const TokenSlot&) = default;
};

/// The (token, slot) pairs grouped by expert: rows offsets[e] .. offsets[e + 1] - 1 belong to
/// expert e and stand in order of token, then slot.
///
/// Shapes  offsets (E + 1), rows (N), row_of (T * K), dropped (used slots - N unless restricted).
/// Values  row_of[t * K + k] is the row of slot k of token t, or `no_row` where that slot has none:
///         it is unused, was dropped, or its expert lies outside a restricted plan. dropped is
///         sorted by token, then slot.
struct DispatchPlan {
  static constexpr std::int32_t no_row = -1;

  Index tokens = 0;
  Index top_k = 0;
  Index num_experts = 0;
  Index first_expert = 0;            ///< of a restricted plan: expert e here is first_expert + e
  std::vector<Index> offsets;        // (E + 1)
  std::vector<TokenSlot> rows;       // (N)
  std::vector<std::int32_t> row_of;  // (T * K)
  std::vector<TokenSlot> dropped;

  Index num_rows() const noexcept { return static_cast<Index>(rows.size()); }
  Index first_row(Index expert) const noexcept { return offsets[static_cast<std::size_t>(expert)]; }
  Index rows_of(Index expert) const noexcept { return first_row(expert + 1) - first_row(expert); }
};

namespace detail {

/// Throws ShapeError or std::invalid_argument if a plan would lead outside of what it describes.
/// Plans are plain values, which callers may build by hand. `where` begins the message.
inline void check_plan(const char* where, const DispatchPlan& plan) {
  check(plan.tokens >= 0 && plan.top_k >= 0 && plan.num_experts >= 0 && plan.first_expert >= 0,
        where, "a size of the plan is negative");
  check_size(where, "plan.offsets.size() - 1", plan.num_experts,
             static_cast<Index>(plan.offsets.size()) - 1);
  check_size(where, "plan.row_of.size()", product(where, plan.tokens, plan.top_k),
             static_cast<Index>(plan.row_of.size()));
  check_size(where, "plan.offsets.front()", 0, plan.offsets.front());
  check_size(where, "plan.offsets.back()", plan.num_rows(), plan.offsets.back());
  check(std::is_sorted(plan.offsets.begin(), plan.offsets.end()), where,
        "plan.offsets must not decrease");
  const auto is_choice = [&](TokenSlot at) {
    return at.token >= 0 && at.token < plan.tokens && at.slot >= 0 && at.slot < plan.top_k;
  };
  check(std::all_of(plan.rows.begin(), plan.rows.end(), is_choice), where,
        "plan.rows names a token or slot that is out of range");
  check(std::all_of(plan.dropped.begin(), plan.dropped.end(), is_choice), where,
        "plan.dropped names a token or slot that is out of range");
  // Each the other's inverse: as many slots with a row as rows, and every row's slot has that row.
  Index used = 0;
  bool is_inside = true;
  for (const std::int32_t row : plan.row_of) {
    is_inside = is_inside && row >= DispatchPlan::no_row && row < plan.num_rows();
    used += row != DispatchPlan::no_row ? 1 : 0;
  }
  check(is_inside, where, "plan.row_of names a row that is out of range");
  bool agrees = used == plan.num_rows();
  for (Index r = 0; agrees && r < plan.num_rows(); ++r) {
    const TokenSlot at = plan.rows[static_cast<std::size_t>(r)];
    agrees = plan.row_of[static_cast<std::size_t>(at.token * plan.top_k + at.slot)] == r;
  }
  check(agrees, where, "plan.rows and plan.row_of disagree");
}

/// The same, and that plan and routing fit each other in sizes, and what was dropped was chosen.
template <class Scalar>
void check_plan_of(const char* where, const Routing<Scalar>& routing, const DispatchPlan& plan) {
  check_routing(where, routing);
  check_plan(where, plan);
  check_size(where, "plan.tokens", routing.tokens(), plan.tokens);
  check_size(where, "plan.top_k", routing.top_k(), plan.top_k);
  const Index last_expert = plan.first_expert + plan.num_experts;
  check_size(where, "plan.first_expert + plan.num_experts",
             std::min(last_expert, routing.num_experts), last_expert);
  for (const TokenSlot at : plan.dropped)
    check(routing.experts(at.token, at.slot) != no_expert, where,
          "plan.dropped names a slot without an expert");
}

/// restrict_plan into a plan whose memory is reused.
inline void restrict_plan(const DispatchPlan& plan, Index first, Index last, DispatchPlan& part) {
  check_plan("restrict_plan", plan);
  check(0 <= first && first <= last && last <= plan.num_experts, "restrict_plan",
        "the experts must be a range of the plan's");
  part.tokens = plan.tokens;
  part.top_k = plan.top_k;
  part.num_experts = last - first;
  part.first_expert = plan.first_expert + first;
  const Index begin = plan.first_row(first);
  const Index end = plan.first_row(last);
  part.dropped.clear();
  part.offsets.clear();
  for (Index e = first; e <= last; ++e) part.offsets.push_back(plan.first_row(e) - begin);
  part.rows.reserve(plan.row_of.size());
  part.rows.assign(plan.rows.begin() + begin, plan.rows.begin() + end);
  part.row_of.resize(plan.row_of.size());
  for (std::size_t i = 0; i < plan.row_of.size(); ++i) {
    const std::int32_t row = plan.row_of[i];
    part.row_of[i] =
        row >= begin && row < end ? static_cast<std::int32_t>(row - begin) : DispatchPlan::no_row;
  }
}

}  // namespace detail

/// The part of a plan that experts first .. last - 1 work on, for a bank that holds only those.
/// Slots of other experts have no row in it, and `dropped` stays with the whole plan.
///
/// Throws  std::invalid_argument unless 0 <= first <= last <= plan.num_experts, or if the plan
///         leads outside of what it describes; ShapeError if its sizes disagree.
inline DispatchPlan restrict_plan(const DispatchPlan& plan, Index first, Index last) {
  DispatchPlan part;
  detail::restrict_plan(plan, first, last, part);
  return part;
}

}  // namespace moe::inline MOE_ABI
