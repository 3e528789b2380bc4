// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What kernels know of quantised weights.
#pragma once

#include <cstdint>

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI {

/// What the bits of a weight mean. The weight is its code's value times its scale.
enum class WeightCode : std::uint8_t {
  int8,        ///< -127 to 127, or -128 where codes are taken over
  int4,        ///< 0 to 15, less 8
  int4_zeros,  ///< 0 to 15, less the zero point of its group
  nl4,         ///< a place among 16 values that stand closer near zero
  mxfp4,       ///< e2m1
  fp8_e4m3,
  fp8_e5m2,
  bfloat16,  ///< without a scale
  half,      ///< without a scale
};

/// The 16 values of nl4, closer to each other near zero, where most weights are: those that give
/// groups of 32 normal numbers the least squared error, each group scaled as suits it best.
///
/// Source  found by the iteration of Lloyd (1982), "Least squares quantization in PCM".
inline constexpr std::int8_t nl4_values[16]{-127, -100, -79, -63, -48, -34, -22, -10,
                                            2,    14,   26,  40,  55,  72,  93,  122};

/// The 16 values of e2m1 in halves.
inline constexpr std::int8_t e2m1_halves[16]{0, 1,  2,  3,  4,  6,  8,  12,
                                             0, -1, -2, -3, -4, -6, -8, -12};

namespace detail {

/// How the scales of a group are stored.
enum class ScaleKind : std::uint8_t {
  none,      ///< no scale, or the output's alone
  half,      ///< IEEE 754 binary16
  byte,      ///< 0 to 255, in units of the output's scale
  exponent,  ///< e8m0
  single,    ///< float
};

/// What the layout of a matrix follows from.
struct FormatTraits {
  int bits = 8;                       // of a code
  ScaleKind scale = ScaleKind::none;  // of a group
  bool has_output_scale = false;      // a float for each output beside
  bool has_zeros = false;             // a byte for each group
  bool in_quads = true;               // four inner values of an output lie side by side
  bool is_integer = true;             // can be multiplied as integers
  bool scales_sums = false;           // as floats: scales multiply a group's sum, not its weights
};

constexpr FormatTraits traits_of(WeightCode code, bool is_grouped) noexcept {
  switch (code) {
    case WeightCode::int8:
      return {.scale = is_grouped ? ScaleKind::half : ScaleKind::none,
              .has_output_scale = !is_grouped};
    case WeightCode::int4:
      return {.bits = 4, .scale = ScaleKind::half};
    case WeightCode::int4_zeros:
      return {.bits = 4, .scale = ScaleKind::half, .has_zeros = true};
    case WeightCode::nl4:
      return {.bits = 4, .scale = ScaleKind::byte, .has_output_scale = true};
    case WeightCode::mxfp4:
      return {.bits = 4, .scale = ScaleKind::exponent};
    case WeightCode::fp8_e4m3:
    case WeightCode::fp8_e5m2:
      return {
          .scale = ScaleKind::single, .in_quads = false, .is_integer = false, .scales_sums = true};
    case WeightCode::bfloat16:
    case WeightCode::half:
      return {.bits = 16, .in_quads = false, .is_integer = false};
  }
  return {};
}

constexpr int scale_bytes(ScaleKind kind) noexcept {
  switch (kind) {
    case ScaleKind::none:
      return 0;
    case ScaleKind::half:
      return 2;
    case ScaleKind::byte:
    case ScaleKind::exponent:
      return 1;
    case ScaleKind::single:
      return 4;
  }
  return 0;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
