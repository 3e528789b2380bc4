// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Which tokens a loss counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI::losses {

/// One entry for each token, 0 for padding. Empty: all tokens count.
using TokenMask = std::span<const std::uint8_t>;

namespace detail {

inline bool counts(TokenMask mask, Index token) {
  return mask.empty() || mask[static_cast<std::size_t>(token)] != 0;
}

/// Number of tokens that count; throws ShapeError if the mask is not T long.
inline Index count_tokens(const char* where, TokenMask mask, Index tokens) {
  if (mask.empty()) return tokens;
  moe::detail::check_size(where, "mask.size()", tokens, static_cast<Index>(mask.size()));
  Index count = 0;
  for (const std::uint8_t entry : mask) count += entry != 0 ? 1 : 0;
  return count;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI::losses
