// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From float weights to codes and scales: rounding to nearest, and scales that make the error
// least.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/coded_matrix.hpp"

namespace moe::inline MOE_ABI {

/// How scales are found.
enum class ScaleSearch {
  nearest,      ///< from the largest magnitude of a group; codes are the nearest
  least_error,  ///< among several, which clip or stretch, the one of the least squared error
};

namespace detail {

/// A group's weights and what their errors count.
struct GroupOfWeights {
  const float* weight = nullptr;
  const float* importance = nullptr;  // or null: all the same
  Index count = 0;

  float importance_of(Index i) const noexcept { return importance == nullptr ? 1 : importance[i]; }
  float largest() const noexcept {
    float most = 0;
    for (Index i = 0; i < count; ++i) most = std::fmax(most, std::fabs(weight[i]));
    return most;
  }
};

/// The nearest of sixteen ascending values, and of two equally near ones the first.
template <class Values>
std::uint16_t nearest_of(const Values& values, float x) noexcept {
  std::uint16_t best = 0;
  for (std::uint16_t i = 1; i < 16; ++i)
    if (std::fabs(x - static_cast<float>(values[i])) <
        std::fabs(x - static_cast<float>(values[best])))
      best = i;
  return best;
}

/// The nearest e2m1 code, ties to even, what exceeds 6 becomes 6.
inline std::uint16_t nearest_e2m1(float x) noexcept {
  const float magnitude = std::fabs(x);
  // Halfway points go to the code whose last bit is 0.
  const std::uint16_t code = magnitude <= 0.25F   ? 0
                             : magnitude < 0.75F  ? 1
                             : magnitude <= 1.25F ? 2
                             : magnitude < 1.75F  ? 3
                             : magnitude <= 2.5F  ? 4
                             : magnitude < 3.5F   ? 5
                             : magnitude <= 5     ? 6
                                                  : 7;
  return std::signbit(x) ? static_cast<std::uint16_t>(code | 8U) : code;
}

/// The code of a weight over its scale.
inline std::uint16_t nearest_code(WeightCode code, float x, std::uint8_t zero) noexcept {
  switch (code) {
    case WeightCode::int8: {
      const auto rounded = static_cast<int>(std::nearbyint(std::clamp(x, -127.0F, 127.0F)));
      return static_cast<std::uint8_t>(static_cast<std::int8_t>(rounded));
    }
    case WeightCode::int4:
      return static_cast<std::uint16_t>(std::nearbyint(std::clamp(x, -8.0F, 7.0F)) + 8);
    case WeightCode::int4_zeros:
      return static_cast<std::uint16_t>(
          std::clamp(std::nearbyint(x) + static_cast<float>(zero), 0.0F, 15.0F));
    case WeightCode::nl4:
      return nearest_of(nl4_values, x);
    case WeightCode::mxfp4:
      return nearest_e2m1(x);
    case WeightCode::fp8_e4m3:
      return float_to_e4m3(x);
    case WeightCode::fp8_e5m2:
      return float_to_e5m2(x);
    case WeightCode::bfloat16:
      return float_to_bfloat16(x);
    case WeightCode::half:
      return float_to_half(x);
  }
  return 0;
}

/// A scale and zero point for a group.
struct GroupScale {
  float scale = 1;
  std::uint8_t zero = 0;
};

/// What weights are multiplied by for their codes. By a scale that is no normal number they all
/// count as zeros.
inline float inverse_of(GroupScale by) noexcept {
  return std::fabs(by.scale) >= std::numeric_limits<float>::min() ? 1 / by.scale : 0;
}

/// Weighted squared error of a group with this scale.
inline double group_error(WeightCode code, const GroupOfWeights& group, GroupScale by) noexcept {
  if (by.scale == 0) return std::numeric_limits<double>::infinity();
  const float inverse = inverse_of(by);
  double error = 0;
  for (Index i = 0; i < group.count; ++i) {
    const std::uint16_t bits = nearest_code(code, group.weight[i] * inverse, by.zero);
    const float difference = group.weight[i] - code_value(code, bits, by.zero) * by.scale;
    error += static_cast<double>(group.importance_of(i)) * difference * difference;
  }
  return error;
}

/// The scale with which these weights' codes have the least weighted squared error.
inline float fitted_scale(WeightCode code, const GroupOfWeights& group, GroupScale by) noexcept {
  double product = 0;
  double square = 0;
  const float inverse = inverse_of(by);
  for (Index i = 0; i < group.count; ++i) {
    const std::uint16_t bits = nearest_code(code, group.weight[i] * inverse, by.zero);
    const auto value = static_cast<double>(code_value(code, bits, by.zero));
    const auto importance = static_cast<double>(group.importance_of(i));
    product += importance * value * static_cast<double>(group.weight[i]);
    square += importance * value * value;
  }
  return square > 0 ? static_cast<float>(product / square) : by.scale;
}

/// A number that the format stores as a group's scale, near `scale`. `unit` is the output's.
inline float storable_scale(ScaleKind kind, float scale, float unit) noexcept {
  switch (kind) {
    case ScaleKind::half: {
      const float rounded = half_to_float(float_to_half(scale));
      return std::isinf(rounded) ? std::copysign(65504.0F, scale) : rounded;
    }
    case ScaleKind::byte:
      return unit == 0 ? 0 : std::clamp(std::nearbyint(scale / unit), 1.0F, 255.0F) * unit;
    case ScaleKind::exponent: {
      if (!(scale > 0)) return 1;
      const int exponent = std::clamp(static_cast<int>(std::ilogb(scale)), -127, 127);
      return std::ldexp(1.0F, exponent);
    }
    case ScaleKind::none:
    case ScaleKind::single:
      break;
  }
  return scale;
}

/// The largest value that a code's magnitude has.
constexpr float largest_value(WeightCode code) noexcept {
  switch (code) {
    case WeightCode::int8:
      return 127;
    case WeightCode::nl4:  // Of both signs.
      return 122;
    case WeightCode::int4:
      return 8;
    case WeightCode::int4_zeros:
      return 15;
    case WeightCode::mxfp4:
      return 6;
    case WeightCode::fp8_e4m3:
      return 448;
    case WeightCode::fp8_e5m2:
      return 57344;
    case WeightCode::bfloat16:
    case WeightCode::half:
      break;
  }
  return 1;
}

/// The scale that a group has without a search, before it is rounded to what can be stored.
inline GroupScale plain_scale(WeightCode code, const GroupOfWeights& group) noexcept {
  if (code == WeightCode::int4_zeros) {
    float least = 0;
    float most = 0;
    for (Index i = 0; i < group.count; ++i) {
      least = std::fmin(least, group.weight[i]);
      most = std::fmax(most, group.weight[i]);
    }
    const float scale = (most - least) / 15;
    if (!(scale > 0)) return {1, 0};
    return {scale,
            static_cast<std::uint8_t>(std::clamp(std::nearbyint(-least / scale), 0.0F, 15.0F))};
  }
  const float largest = group.largest();
  if (!(largest > 0)) return {};
  if (code == WeightCode::int4) {  // -8 has no counterpart: the largest weight gets it.
    for (Index i = 0; i < group.count; ++i)
      if (std::fabs(group.weight[i]) == largest) return {group.weight[i] / -8, 0};
  }
  if (code == WeightCode::nl4) {  // Its values of the two signs end elsewhere.
    float scale = 0;
    for (Index i = 0; i < group.count; ++i)
      scale = std::fmax(
          scale, std::fmax(group.weight[i] / nl4_values[15], group.weight[i] / nl4_values[0]));
    return {scale, 0};
  }
  if (code == WeightCode::mxfp4)  // The largest value below the next power of two is 6 of 8.
    return {std::ldexp(1.0F, std::max(std::ilogb(largest) - 2, -127)), 0};
  return {largest / largest_value(code), 0};
}

/// The scale of a group. `unit` is the output's, for codes whose groups count in it.
inline GroupScale find_scale(WeightCode code, ScaleKind kind, const GroupOfWeights& group,
                             ScaleSearch search, float unit) noexcept {
  const GroupScale plain = plain_scale(code, group);
  const auto storable = [&](GroupScale by, float scale) {
    by.scale = storable_scale(kind, scale, unit);
    return by;
  };
  // Without a code for zero, a scale of zero has to do.
  if (!(group.largest() > 0)) return {kind == ScaleKind::byte ? 0.0F : 1.0F, plain.zero};
  GroupScale best = storable(plain, plain.scale);
  if (best.scale == 0) best.scale = kind == ScaleKind::half ? 0x1p-24F : 1.0F;
  if (search == ScaleSearch::nearest) return best;
  double least = group_error(code, group, best);
  const auto consider = [&](GroupScale by) {
    const double error = group_error(code, group, by);
    if (error < least) {
      least = error;
      best = by;
    }
  };
  if (kind == ScaleKind::exponent) {
    for (const float factor : {0.5F, 2.0F}) consider(storable(plain, plain.scale * factor));
    return best;
  }
  // From a fifth less to a fifth more, each then fitted to the codes that it gives.
  constexpr int steps = 8;
  for (int step = -steps; step <= steps; ++step) {
    GroupScale by = plain;
    by.scale *= 1 + 0.2F * static_cast<float>(step) / steps;
    if (by.scale == 0) continue;
    for (const int moved : {0, -1, 1}) {
      if (moved != 0 && code != WeightCode::int4_zeros) break;
      GroupScale shifted = by;
      shifted.zero =
          static_cast<std::uint8_t>(std::clamp(static_cast<int>(plain.zero) + moved, 0, 15));
      consider(storable(shifted, shifted.scale));
      consider(storable(shifted, fitted_scale(code, group, shifted)));
    }
  }
  return best;
}

}  // namespace detail

/// Quantises one output's weights.
///
/// Shapes  weights (inner); importance (inner), what a squared error at each inner value counts,
///         such as the mean square of what it is multiplied by, or empty.
/// Values  weights become zeros where the scale of their group would be too small: where scales are
///         halves those below 3e-8; in mxfp4 all of a group below 5e-38; in e5m2 all of one below
///         7e-34, elsewhere all of an output below 1e-35.
/// Throws  ShapeError if sizes disagree; std::invalid_argument if a weight is not finite, or too
///         large: in f16 and bf16 where it rounds to infinity, and where scales are halves if one
///         would have to be above 65504.
inline CodedOutput quantize_output(const MatrixLayout& layout, std::span<const float> weights,
                                   std::span<const float> importance, ScaleSearch search) {
  constexpr const char* where = "quantize_output";
  const WeightCode code = layout.format.code;
  const detail::FormatTraits traits = detail::traits_of(layout.format);
  detail::check_size(where, "weights.size()", layout.inner, static_cast<Index>(weights.size()));
  if (!importance.empty())
    detail::check_size(where, "importance.size()", layout.inner,
                       static_cast<Index>(importance.size()));
  for (const float weight : weights)
    detail::check(std::isfinite(weight), where, "a weight is not finite");
  const float largest = detail::GroupOfWeights{weights.data(), nullptr, layout.inner}.largest();
  const bool has_large_scales = traits.bits < 16 && code != WeightCode::mxfp4;
  if (has_large_scales && largest > 0 && largest < 1e-35F) {
    const std::vector<float> zeros(weights.size(), 0);
    return quantize_output(layout, zeros, {}, search);
  }
  CodedOutput output;
  output.codes.resize(weights.size());
  const auto group_at = [&](Index g) {
    const Index begin = g * layout.group;
    return detail::GroupOfWeights{weights.data() + begin,
                                  importance.empty() ? nullptr : importance.data() + begin,
                                  std::min(layout.group, layout.inner - begin)};
  };
  const auto code_group = [&](const detail::GroupOfWeights& group, Index g, detail::GroupScale by) {
    const float inverse = detail::inverse_of(by);
    for (Index i = 0; i < group.count; ++i)
      output.codes[static_cast<std::size_t>(g * layout.group + i)] =
          detail::nearest_code(code, group.weight[i] * inverse, by.zero);
  };
  if (traits.bits == 16) {
    code_group(group_at(0), 0, {});
    for (const std::uint16_t bits : output.codes)
      detail::check(detail::is_finite_code(code, bits), where, "a weight is beyond the format");
    return output;
  }
  constexpr float largest_half = 65504;
  if (traits.scale == detail::ScaleKind::half && largest > largest_half)
    for (Index g = 0; g < layout.groups; ++g)
      detail::check(std::fabs(detail::plain_scale(code, group_at(g)).scale) <= largest_half, where,
                    "a weight is beyond the format");
  const bool has_groups = traits.scale != detail::ScaleKind::none;
  if (!has_groups) {
    const auto by = detail::find_scale(code, traits.scale, group_at(0), search, 1);
    output.output_scale = by.scale;
    code_group(group_at(0), 0, by);
    return output;
  }
  float unit = 1;
  if (traits.has_output_scale) {  // The largest group, a fifth stretched, has 255 units.
    float most = 0;
    for (Index g = 0; g < layout.groups; ++g) most = std::fmax(most, group_at(g).largest());
    unit = most / detail::largest_value(code) * (search == ScaleSearch::nearest ? 1 : 1.2F) / 255;
    if (unit == 0) unit = 1;
    output.output_scale = unit;
  }
  for (Index g = 0; g < layout.groups; ++g) {
    const detail::GroupOfWeights group = group_at(g);
    const auto by = detail::find_scale(code, traits.scale, group, search, unit);
    output.scales.push_back(traits.has_output_scale ? by.scale / unit : by.scale);
    if (traits.has_output_scale) output.scales.back() = std::nearbyint(output.scales.back());
    if (traits.has_zeros) output.zeros.push_back(by.zero);
    code_group(group, g, by);
  }
  return output;
}

}  // namespace moe::inline MOE_ABI
