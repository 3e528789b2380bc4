// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What every level offers for quantised weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/weight_code.hpp"
#include "moe/kernels/kernel_table.hpp"

namespace moe::inline MOE_ABI::kernels {

/// Integer sums of a group begin with the bits of 1.5 * 2^23: those of magnitude up to 2^22 are a
/// float's then, which exceeds them by 1.5 * 2^23, and no conversion is needed. Times a scale of 22
/// bits that excess is exact, so that one multiply-add rounds the sum times its scale.
inline constexpr std::int32_t sum_excess_bits = 0x4b400000;
inline constexpr float sum_excess = 0x1.8p23F;

/// Rows of activations in eight bits.
///
/// Shapes  codes (inner / 4, stride, 4), where the rows are 0, 1, ...; scales, excesses, starts,
///         sums (groups, stride). `excesses` are -sum_excess times the scale; `starts` is what the
///         level's products of codes begin with; `sums` the groups' sums of codes times their
///         scale, which zero points are multiplied by.
template <class Code, class Float, class Int>
struct CodedRowsOf {
  Code* codes = nullptr;
  Float* scales = nullptr;
  Float* excesses = nullptr;
  Int* starts = nullptr;
  Float* sums = nullptr;
  std::ptrdiff_t stride = 0;

  CodedRowsOf from(std::ptrdiff_t row) const noexcept {
    return {codes + 4 * row, scales + row, excesses + row, starts + row, sums + row, stride};
  }
};
using CodedRows = CodedRowsOf<const std::int8_t, const float, const std::int32_t>;
using CodedRowsToSet = CodedRowsOf<std::int8_t, float, std::int32_t>;

/// Products of a tile of rows with a panel of quantised weights:
///
///   sums[r][o] = output scale[o] * sum over groups of scale[o] * row scale[r] * integer sum
///
/// Shapes  panel as MatrixLayout says, of `groups` groups of `quads` times 4 inner values; sums
///         (rows, 32).
/// Values  integer sums are exact; the rest is one accumulator for each output, over groups in
///         order: the same bits whatever the number of rows.
/// Memory  asks for lines, a step for every four inner values, with a period of 8; a level's few
///         rows ask for lines of the panel instead.
using CodedProduct = void (*)(const CodedRows& rows, const std::byte* panel, std::ptrdiff_t groups,
                              std::ptrdiff_t quads, float* sums, Lines next) noexcept;

/// The same of one row with several panels, `stride` bytes apart: sums (panels, 32), the same bits.
using SideCodedProduct = void (*)(const CodedRows& rows, const std::byte* panel,
                                  std::ptrdiff_t stride, std::ptrdiff_t groups,
                                  std::ptrdiff_t quads, float* sums) noexcept;

/// The weights of some groups of a panel as floats: codes times scales, rounded once; where scales
/// multiply sums, what GroupAdder is to multiply with them.
///
/// Shapes  record: that of the first group; outputs (32), scales of outputs, or null; to (groups *
///         group, 32).
using CodedDecoder = void (*)(const std::byte* record, const float* outputs, std::ptrdiff_t groups,
                              std::ptrdiff_t group, float* to) noexcept;

/// For formats whose scales multiply sums:
///
///   sums[r][o] += scale[o] * of_group[r][o]
///
/// with what TileKernels sum up of one group that CodedDecoder has widened.
///
/// Shapes  of_group, sums (count, 32); record: the group's.
/// Values  one rounding where the level has a fused multiply-add.
using GroupAdder = void (*)(const float* of_group, const std::byte* record, std::ptrdiff_t count,
                            float* sums) noexcept;

/// Products of one or two rows of floats with a panel of weights, each widened as CodedDecoder
/// says: the bits of TileKernels on what that gives, and of GroupAdder.
///
/// Shapes  a (inner, rows); record: that of the first group; outputs (32), scales of outputs, or
///         null; sums (rows, 32).
using WidenedProduct = void (*)(const float* a, const std::byte* record, const float* outputs,
                                std::ptrdiff_t inner, std::ptrdiff_t group, float* sums) noexcept;

/// The same of one row with several panels, `stride` bytes apart: sums (panels, 32), the same bits.
struct SideWidenedProduct {
  void (*product)(const float* a, const std::byte* record, const float* outputs,
                  std::ptrdiff_t stride, std::ptrdiff_t inner, std::ptrdiff_t group,
                  float* sums) noexcept = nullptr;  // or null, with 0 panels
  std::ptrdiff_t panels = 0;
};

/// One row of activations in eight bits: with a the largest magnitude of a group, codes are
/// round(x / (a / 127)), ties to even. Where a is below 1e-30, all codes are 0. What is not finite
/// makes the scale so, and what exceeds 1e33 may. Scales of formats with groups keep 22 bits.
///
/// Shapes  x (n); row: whose first row is written, filled up to groups * group.
/// Values  a group's entry of starts is `start` times the sum of its codes, plus sum_excess_bits in
///         formats with groups.
using RowCoder = void (*)(const float* x, float factor, std::ptrdiff_t n, std::ptrdiff_t group,
                          std::ptrdiff_t groups, std::int32_t start,
                          const CodedRowsToSet& row) noexcept;

/// For one format of weights.
struct CodedKernels {
  CodedDecoder decode = nullptr;
  GroupAdder add_group = nullptr;  // or null, where scales multiply weights
  RowCoder code_row = nullptr;
  WidenedProduct widened[2] = {};             // of one row, and of two
  SideWidenedProduct widened_side_by_side;    // where memory wants several streams
  SideWidenedProduct widened_pair;            // elsewhere
  std::int32_t start = 0;                     // of products, for each unit of a group's sum
  std::ptrdiff_t most_rows = 0;               // of a tile
  std::ptrdiff_t few_rows = 0;                // that ask for lines of the panel
  CodedProduct of_rows[most_tile_rows] = {};  // of_rows[r - 1] for r rows
  std::ptrdiff_t side_panels = 0;
  SideCodedProduct side_by_side = nullptr;  // of side_panels panels, or null
};

}  // namespace moe::inline MOE_ABI::kernels
