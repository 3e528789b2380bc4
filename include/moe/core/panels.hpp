// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The layout of packed weights, the same for every level of instructions.
#pragma once

#include <cstddef>

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI::kernels {

/// Outputs of a panel.
inline constexpr std::ptrdiff_t panel_width = 32;

/// Hidden values that one panel of a gated expert gives: 16 gates stand before their 16 ups.
inline constexpr std::ptrdiff_t gated_width = panel_width / 2;

}  // namespace moe::inline MOE_ABI::kernels
