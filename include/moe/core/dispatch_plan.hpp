// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// DispatchPlan: the rows of every expert. A plain value; `make_plan` fills it from a Routing.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/core/config.hpp"
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
/// Shapes  offsets (E + 1), rows (N), row_of (T * K), dropped (T * K - N unless restricted).
/// Values  row_of[t * K + k] is the row of slot k of token t, or `no_row` where the slot was
/// dropped
///         or its expert lies outside a restricted plan; dropped is sorted by token, then slot.
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

}  // namespace moe::inline MOE_ABI
