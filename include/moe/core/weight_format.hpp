// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The formats of quantised weights, and how a matrix lies in each of them, to the bit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_code.hpp"

namespace moe::inline MOE_ABI {

/// Of weight formats: the code, and how many inner values of an output share a scale; 0 where all
/// of them do.
struct WeightFormat {
  WeightCode code = WeightCode::int8;
  Index group = 0;

  friend bool operator==(const WeightFormat&, const WeightFormat&) = default;
};

namespace detail {

constexpr FormatTraits traits_of(WeightFormat format) noexcept {
  return traits_of(format.code, format.group != 0);
}

}  // namespace detail

/// Whether a format can be multiplied with activations of eight bits.
constexpr bool has_integer_products(WeightFormat format) noexcept {
  return detail::traits_of(format).is_integer;
}

/// The name of a format: int8, int8-g32, int4-g64, int4z-g128, nl4-g32, mxfp4, fp8, fp8-e5m2, bf16,
/// f16.
inline std::string format_name(WeightFormat format) {
  const auto grouped = [&](const char* name) {
    return std::string(name) + "-g" + std::to_string(format.group);
  };
  switch (format.code) {
    case WeightCode::int8:
      return format.group == 0 ? "int8" : grouped("int8");
    case WeightCode::int4:
      return grouped("int4");
    case WeightCode::int4_zeros:
      return grouped("int4z");
    case WeightCode::nl4:
      return grouped("nl4");
    case WeightCode::mxfp4:
      return "mxfp4";
    case WeightCode::fp8_e4m3:
      return "fp8";
    case WeightCode::fp8_e5m2:
      return "fp8-e5m2";
    case WeightCode::bfloat16:
      return "bf16";
    case WeightCode::half:
      return "f16";
  }
  return "?";
}

/// Every format that there is.
inline constexpr std::array<WeightFormat, 18> weight_formats{{
    {WeightCode::int8, 0},
    {WeightCode::int8, 32},
    {WeightCode::int8, 64},
    {WeightCode::int8, 128},
    {WeightCode::int4, 32},
    {WeightCode::int4, 64},
    {WeightCode::int4, 128},
    {WeightCode::int4_zeros, 32},
    {WeightCode::int4_zeros, 64},
    {WeightCode::int4_zeros, 128},
    {WeightCode::nl4, 32},
    {WeightCode::nl4, 64},
    {WeightCode::nl4, 128},
    {WeightCode::mxfp4, 32},
    {WeightCode::fp8_e4m3, 128},
    {WeightCode::fp8_e5m2, 128},
    {WeightCode::bfloat16, 0},
    {WeightCode::half, 0},
}};

/// Throws  std::invalid_argument, beginning with `where`, if there is no such format: int8 has
///         groups of 32, 64, 128 or none, four bits have groups of 32, 64 or 128, mxfp4 of 32, fp8
///         of 128, and 16 bits none.
inline void check_format(const char* where, WeightFormat format) {
  for (const WeightFormat& known : weight_formats)
    if (known == format) return;
  detail::throw_invalid(where, detail::text_of("there is no ", format_name(format),
                                               " whose groups have ", format.group, " values"));
}

/// The format of that name.
///
/// Throws  std::invalid_argument if there is none.
inline WeightFormat format_of(std::string_view name) {
  std::string known;
  for (const WeightFormat& format : weight_formats) {
    if (format_name(format) == name) return format;
    known += (known.empty() ? "" : ", ") + format_name(format);
  }
  detail::throw_invalid("format_of", detail::text_of("'", name, "' is none of ", known));
}

/// How a matrix of one format lies in memory: panels of 32 outputs, one behind the other, each
///
///     float  scale of the output, 32 of them                  int8 without groups, nl4
///     for each group of inner values, the last one filled up:
///       scales, 32 of them       half, byte (nl4), e8m0 (mxfp4) or float (fp8)
///       zero points, 32 bytes    int4z
///       codes
///
/// and filled up with zeros to a multiple of 64 bytes. All numbers are little-endian. Codes of fp8,
/// bf16 and f16 lie as (inner, 32). Those of int8 lie as (inner / 4, 32, 4): four inner values of
/// an output side by side. Codes of four bits lie likewise as (inner / 4, 16, 4) bytes, whose low
/// halves are outputs 0 to 15 and whose high halves outputs 16 to 31. Without groups there is one
/// of all inner values, filled up to a multiple of 4 in quads. Outputs of a gated expert's first
/// matrix alternate: 16 of the gate, then the same 16 of up, in every panel.
struct MatrixLayout {
  WeightFormat format{};
  Index inner = 0;
  Index panels = 0;
  Index group = 0;         // inner values of a group
  Index groups = 0;        // of a panel
  Index header_bytes = 0;  // of a panel: scales of outputs
  Index scale_bytes = 0;   // of a group
  Index zero_bytes = 0;    // of a group
  Index code_bytes = 0;    // of a group
  Index panel_bytes = 0;

  MatrixLayout() = default;

  /// Without groups, integer products sum up to this many inner values in 32 bits: 128 * 127 each.
  static constexpr Index most_in_group = ((Index{1} << 31) - 1) / (Index{128} * 127) / 4 * 4;

  /// `columns` counts outputs, with those that fill up panels.
  ///
  /// Throws  std::invalid_argument if there is no such format, a size is not positive, or inner is
  ///         above `most_in_group` in int8 without groups.
  MatrixLayout(WeightFormat its_format, Index columns, Index its_inner)
      : format(its_format), inner(its_inner) {
    constexpr const char* where = "MatrixLayout";
    check_format(where, format);
    detail::check(columns > 0 && inner > 0, where, "sizes must be positive");
    if (format.code == WeightCode::int8 && format.group == 0)
      detail::check(inner <= most_in_group, where,
                    "the inner size is too large for int8 without groups: give it groups");
    const detail::FormatTraits traits = detail::traits_of(format);
    constexpr Index width = kernels::panel_width;
    panels = (columns + width - 1) / width;
    const Index whole = traits.in_quads ? (inner + 3) / 4 * 4 : inner;
    group = format.group == 0 ? whole : format.group;
    groups = (inner + group - 1) / group;
    header_bytes = traits.has_output_scale ? width * 4 : 0;
    scale_bytes = width * detail::scale_bytes(traits.scale);
    zero_bytes = traits.has_zeros ? width : 0;
    code_bytes = group * width * traits.bits / 8;
    panel_bytes = (header_bytes + groups * record_bytes() + 63) / 64 * 64;
  }

  Index record_bytes() const noexcept { return scale_bytes + zero_bytes + code_bytes; }
  Index bytes() const noexcept { return panels * panel_bytes; }
  Index panel_offset(Index p) const noexcept { return p * panel_bytes; }
  Index record_offset(Index p, Index g) const noexcept {
    return panel_offset(p) + header_bytes + g * record_bytes();
  }
  Index codes_offset(Index p, Index g) const noexcept {
    return record_offset(p, g) + scale_bytes + zero_bytes;
  }
};

}  // namespace moe::inline MOE_ABI
