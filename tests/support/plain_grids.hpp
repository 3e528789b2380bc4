// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Grids of other quantisers, written down by themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <moe/core/numeric.hpp>

namespace test_support {

/// The grid of ggml's q8_0: of 32 weights, the largest magnitude over 127 as a half.
inline std::vector<float> plain_int8(const std::vector<float>& weights) {
  std::vector<float> result;
  for (std::size_t g = 0; g < weights.size(); g += 32) {
    float largest = 0;
    for (std::size_t i = g; i < g + 32; ++i) largest = std::fmax(largest, std::fabs(weights[i]));
    const float scale = largest / 127;
    const float stored = moe::half_to_float(moe::float_to_half(scale));
    for (std::size_t i = g; i < g + 32; ++i)
      result.push_back(stored * std::round(scale > 0 ? weights[i] / scale : 0));
  }
  return result;
}

/// The grid of ggml's q4_0: the weight of the largest magnitude is -8 times the scale.
inline std::vector<float> plain_int4(const std::vector<float>& weights) {
  std::vector<float> result;
  for (std::size_t g = 0; g < weights.size(); g += 32) {
    float largest = 0;
    for (std::size_t i = g; i < g + 32; ++i)
      if (std::fabs(weights[i]) > std::fabs(largest)) largest = weights[i];
    const float scale = largest / -8;
    const float stored = moe::half_to_float(moe::float_to_half(scale));
    for (std::size_t i = g; i < g + 32; ++i) {
      const float code = std::min(15.0F, std::floor(weights[i] / scale + 8.5F));
      result.push_back(stored * (code - 8));
    }
  }
  return result;
}

}  // namespace test_support
