// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Matrices of quantised weights: one output's codes, and where they lie.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/core/weight_format.hpp"

namespace moe::inline MOE_ABI {

/// The codes of one output's weights. Scales are numbers that the format can store: halves, whole
/// numbers up to 255 (nl4), powers of two (mxfp4), floats.
///
/// Shapes  codes (inner); scales (groups), empty where groups have none; zeros (groups) for int4z.
/// Values  codes of int4 are 0 to 15 (see WeightCode), of int8 and fp8 a byte, of 16 bits their
///         bits.
struct CodedOutput {
  std::vector<std::uint16_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  float output_scale = 1;  // for int8 without groups and nl4
};

namespace detail {

/// The value of a code, without its scale.
inline float code_value(WeightCode code, std::uint16_t bits, std::uint8_t zero) noexcept {
  switch (code) {
    case WeightCode::int8:
      return static_cast<float>(static_cast<std::int8_t>(bits));
    case WeightCode::int4:
      return static_cast<float>(static_cast<int>(bits) - 8);
    case WeightCode::int4_zeros:
      return static_cast<float>(static_cast<int>(bits) - static_cast<int>(zero));
    case WeightCode::nl4:
      return static_cast<float>(nl4_values[bits & 15U]);
    case WeightCode::mxfp4:
      return e2m1_to_float(static_cast<std::uint8_t>(bits));
    case WeightCode::fp8_e4m3:
      return e4m3_to_float(static_cast<std::uint8_t>(bits));
    case WeightCode::fp8_e5m2:
      return e5m2_to_float(static_cast<std::uint8_t>(bits));
    case WeightCode::bfloat16:
      return bfloat16_to_float(bits);
    case WeightCode::half:
      return half_to_float(bits);
  }
  return 0;
}

/// Whether the code of a floating-point format is a number; the others have no other codes.
inline bool is_finite_code(WeightCode code, std::uint16_t bits) noexcept {
  switch (code) {
    case WeightCode::fp8_e4m3:
      return (bits & 0x7fU) != 0x7fU;
    case WeightCode::fp8_e5m2:
      return (bits & 0x7cU) != 0x7cU;
    case WeightCode::bfloat16:
      return (bits & 0x7f80U) != 0x7f80U;
    case WeightCode::half:
      return (bits & 0x7c00U) != 0x7c00U;
    default:
      return true;
  }
}

/// The scale of a group, times that of the output where it has one.
inline float scale_of(const MatrixLayout& layout, const CodedOutput& output, Index g) noexcept {
  const float scale = output.scales.empty() ? 1 : output.scales[static_cast<std::size_t>(g)];
  return traits_of(layout.format).has_output_scale ? scale * output.output_scale : scale;
}

/// The first weight of an output that is not finite, by its code, its scale or both; `inner` if all
/// are. Kernels multiply scales of e4m3 by 256 first, so that must be finite, too.
inline Index first_not_finite(const MatrixLayout& layout, const CodedOutput& output) noexcept {
  constexpr float harmless = 0x1p111F;  // times the largest value of any code, 57344
  const WeightCode code = layout.format.code;
  for (Index g = 0; g < layout.groups; ++g) {
    const float scale = scale_of(layout, output, g);
    const bool is_harmless = std::fabs(scale) <= harmless;
    if (code == WeightCode::fp8_e4m3 && !std::isfinite(scale * 256)) return g * layout.group;
    const Index end = std::min((g + 1) * layout.group, layout.inner);
    for (Index k = g * layout.group; k < end; ++k) {
      const std::uint16_t bits = output.codes[static_cast<std::size_t>(k)];
      if (!is_finite_code(code, bits)) return k;
      if (!is_harmless && !std::isfinite(code_value(code, bits, 0) * scale)) return k;
    }
  }
  return layout.inner;
}

/// Whether a group's scale is a finite number in this form; halves may be rounded, not to zero.
inline bool can_store(ScaleKind kind, float scale) noexcept {
  switch (kind) {
    case ScaleKind::half: {
      const float rounded = half_to_float(float_to_half(scale));
      return std::isfinite(rounded) && (rounded != 0 || scale == 0);
    }
    case ScaleKind::byte:
      return scale >= 0 && scale <= 255 && scale == std::nearbyint(scale);
    case ScaleKind::exponent:
      return scale == e8m0_to_float(static_cast<std::uint8_t>(
                          (std::bit_cast<std::uint32_t>(scale) >> 23) & 255U));
    case ScaleKind::none:
    case ScaleKind::single:
      break;
  }
  return std::isfinite(scale);
}

/// Throws  ShapeError, beginning with `where`, if an output has not the sizes of the matrix;
///         std::invalid_argument if a weight is not finite, or a code or a scale none of the
///         format's.
inline void check_output(const char* where, const MatrixLayout& layout, const CodedOutput& output) {
  const FormatTraits traits = traits_of(layout.format);
  check_size(where, "codes.size()", layout.inner, static_cast<Index>(output.codes.size()));
  check_size(where, "scales.size()", traits.scale == ScaleKind::none ? 0 : layout.groups,
             static_cast<Index>(output.scales.size()));
  check_size(where, "zeros.size()", traits.has_zeros ? layout.groups : 0,
             static_cast<Index>(output.zeros.size()));
  const std::uint32_t most = (1U << static_cast<unsigned>(traits.bits)) - 1;
  for (const std::uint16_t code : output.codes)
    check(code <= most, where, "a code has more bits than the format");
  check(first_not_finite(layout, output) == layout.inner, where, "a weight is not finite");
  for (const float scale : output.scales)
    check(can_store(traits.scale, scale), where, "a scale is none that the format stores");
}

/// The weights (inner) of an output: each code's value times its scale, rounded once.
inline void decode_output(const MatrixLayout& layout, const CodedOutput& output,
                          float* weights) noexcept {
  for (Index k = 0; k < layout.inner; ++k) {
    const Index g = k / layout.group;
    const std::uint8_t zero =
        output.zeros.empty() ? std::uint8_t{0} : output.zeros[static_cast<std::size_t>(g)];
    weights[k] = code_value(layout.format.code, output.codes[static_cast<std::size_t>(k)], zero) *
                 scale_of(layout, output, g);
  }
}

/// Where one number lies in a matrix, and how.
struct CodePlace {
  Index byte = 0;
  int shift = 0;  // of four bits
};

inline CodePlace place_of(const MatrixLayout& layout, Index column, Index k) noexcept {
  constexpr Index width = kernels::panel_width;
  const Index c = column % width;
  const Index in_group = k % layout.group;
  const Index base = layout.codes_offset(column / width, k / layout.group);
  const FormatTraits traits = traits_of(layout.format);
  if (!traits.in_quads) return {base + (in_group * width + c) * traits.bits / 8, 0};
  if (traits.bits == 8) return {base + in_group / 4 * 4 * width + 4 * c + in_group % 4, 0};
  constexpr Index half = width / 2;
  return {base + in_group / 4 * 4 * half + 4 * (c % half) + in_group % 4, c < half ? 0 : 4};
}

inline void put_scale(ScaleKind kind, float scale, std::byte* to) noexcept {
  if (kind == ScaleKind::half) {
    const std::uint16_t bits = float_to_half(scale);
    std::memcpy(to, &bits, 2);
  } else if (kind == ScaleKind::single) {
    std::memcpy(to, &scale, 4);
  } else if (kind == ScaleKind::byte) {
    *to = static_cast<std::byte>(scale);
  } else if (kind == ScaleKind::exponent) {
    *to = static_cast<std::byte>(std::bit_cast<std::uint32_t>(scale) >> 23);
  }
}

inline float get_scale(ScaleKind kind, const std::byte* from) noexcept {
  if (kind == ScaleKind::half) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, from, 2);
    return half_to_float(bits);
  }
  if (kind == ScaleKind::single) {
    float scale = 0;
    std::memcpy(&scale, from, 4);
    return scale;
  }
  if (kind == ScaleKind::byte) return static_cast<float>(*from);
  if (kind == ScaleKind::exponent) return e8m0_to_float(static_cast<std::uint8_t>(*from));
  return 1;
}

/// Writes output `column` of a matrix; what it fills up stays zero.
inline void put_output(const MatrixLayout& layout, Index column, const CodedOutput& output,
                       std::byte* matrix) noexcept {
  constexpr Index width = kernels::panel_width;
  const FormatTraits traits = traits_of(layout.format);
  const Index panel = column / width;
  const Index c = column % width;
  if (traits.has_output_scale)
    std::memcpy(matrix + layout.panel_offset(panel) + 4 * c, &output.output_scale, 4);
  for (Index g = 0; g < layout.groups; ++g) {
    std::byte* const record = matrix + layout.record_offset(panel, g);
    const auto at = static_cast<std::size_t>(g);
    if (traits.scale != ScaleKind::none)
      put_scale(traits.scale, output.scales[at], record + c * scale_bytes(traits.scale));
    if (traits.has_zeros) record[layout.scale_bytes + c] = static_cast<std::byte>(output.zeros[at]);
  }
  for (Index k = 0; k < layout.inner; ++k) {
    const CodePlace place = place_of(layout, column, k);
    const std::uint16_t code = output.codes[static_cast<std::size_t>(k)];
    if (traits.bits == 16) {
      std::memcpy(matrix + place.byte, &code, 2);
    } else if (traits.bits == 8) {
      matrix[place.byte] = static_cast<std::byte>(code);
    } else {
      matrix[place.byte] = (matrix[place.byte] & static_cast<std::byte>(0xf0U >> place.shift)) |
                           static_cast<std::byte>(code << place.shift);
    }
  }
}

/// The reverse.
inline CodedOutput get_output(const MatrixLayout& layout, Index column, const std::byte* matrix) {
  constexpr Index width = kernels::panel_width;
  const FormatTraits traits = traits_of(layout.format);
  const Index panel = column / width;
  const Index c = column % width;
  CodedOutput output;
  if (traits.has_output_scale)
    std::memcpy(&output.output_scale, matrix + layout.panel_offset(panel) + 4 * c, 4);
  for (Index g = 0; g < layout.groups; ++g) {
    const std::byte* const record = matrix + layout.record_offset(panel, g);
    if (traits.scale != ScaleKind::none)
      output.scales.push_back(get_scale(traits.scale, record + c * scale_bytes(traits.scale)));
    if (traits.has_zeros)
      output.zeros.push_back(static_cast<std::uint8_t>(record[layout.scale_bytes + c]));
  }
  output.codes.resize(static_cast<std::size_t>(layout.inner));
  for (Index k = 0; k < layout.inner; ++k) {
    const CodePlace place = place_of(layout, column, k);
    std::uint16_t code = 0;
    if (traits.bits == 16) {
      std::memcpy(&code, matrix + place.byte, 2);
    } else {
      code = static_cast<std::uint8_t>(matrix[place.byte]);
      if (traits.bits == 4) code = (code >> place.shift) & 15U;
    }
    output.codes[static_cast<std::size_t>(k)] = code;
  }
  return output;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
