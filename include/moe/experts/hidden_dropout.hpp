// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Dropout of hidden values inside experts.
#pragma once

#include <cstdint>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/random.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI::detail {

/// What the hidden values first .. first + count - 1 of a choice are multiplied by: 0, or 1 over
/// the share that stays. It depends on seed, token, slot and hidden value alone, so that a backward
/// finds it again and neither threads nor other tokens matter.
///
/// Shapes  factor (count).
template <class Scalar>
void dropout_factors(const HiddenDropout& dropout, TokenSlot choice, Index top_k, Index d_ff,
                     Index first, Index count, Scalar* factor) noexcept {
  const auto kept = static_cast<Scalar>(1 / (1 - dropout.rate));
  const auto at = static_cast<std::uint64_t>((choice.token * top_k + choice.slot) * d_ff + first);
  for (Index i = 0; i < count; ++i)
    factor[i] =
        uniform(dropout.seed, at + static_cast<std::uint64_t>(i)) < dropout.rate ? Scalar(0) : kept;
}

}  // namespace moe::inline MOE_ABI::detail
