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

/// Rows of activations in eight bits, as a product reads them.
///
/// Shapes  codes (inner / 4, stride, 4), where the rows are 0, 1, ...; scales, starts, sums
///         (groups, stride). `starts` is what the level's products of codes begin with; `sums` the
///         groups' sums of codes times their scale, which zero points are multiplied by.
struct CodedRows {
  const std::int8_t* codes = nullptr;
  const float* scales = nullptr;
  const std::int32_t* starts = nullptr;
  const float* sums = nullptr;
  std::ptrdiff_t stride = 0;

  CodedRows from(std::ptrdiff_t row) const noexcept {
    return {codes + 4 * row, scales + row, starts + row, sums + row, stride};
  }
};

/// Products of a tile of rows with a panel of quantised weights:
///
///   sums[r][o] = output scale[o] * sum over groups of scale[o] * row scale[r] * integer sum
///
/// Shapes  panel as MatrixLayout says, of `groups` groups of `quads` times 4 inner values; sums
///         (rows, 32).
/// Values  integer sums are exact; the rest is one accumulator for each output, over groups in
///         order: the same bits whatever the number of rows.
/// Memory  asks for lines, a step for every four inner values, and `in_streams` with a period of 8;
///         a level's few rows ask for lines of the panel instead.
using CodedProduct = void (*)(const CodedRows& rows, const std::byte* panel, std::ptrdiff_t groups,
                              std::ptrdiff_t quads, float* sums, Lines next) noexcept;

/// The same of one row with several panels, `stride` bytes apart: sums (panels, 32), the same bits.
using SideCodedProduct = void (*)(const CodedRows& rows, const std::byte* panel,
                                  std::ptrdiff_t stride, std::ptrdiff_t groups,
                                  std::ptrdiff_t quads, float* sums) noexcept;

/// The weights of some groups of a panel as floats: codes times scales, rounded once.
///
/// Shapes  record: that of the first group; outputs (32), scales of outputs, or null; to (groups *
///         group, 32).
using CodedDecoder = void (*)(const std::byte* record, const float* outputs, std::ptrdiff_t groups,
                              std::ptrdiff_t group, float* to) noexcept;

/// Products of one or two rows of floats with a panel of weights, each widened as CodedDecoder
/// says: the bits of TileKernels on what that gives.
///
/// Shapes  a (inner, rows); record: that of the first group; outputs (32), scales of outputs, or
///         null; sums (rows, 32).
using WidenedProduct = void (*)(const float* a, const std::byte* record, const float* outputs,
                                std::ptrdiff_t inner, std::ptrdiff_t group, float* sums) noexcept;

/// The same of one row with several panels, `stride` bytes apart: sums (panels, 32), the same bits.
using SideWidenedProduct = void (*)(const float* a, const std::byte* record, const float* outputs,
                                    std::ptrdiff_t stride, std::ptrdiff_t inner,
                                    std::ptrdiff_t group, float* sums) noexcept;

/// One row of activations in eight bits: with a the largest magnitude of a group, codes are
/// round(x / (a / 127)), ties to even. Where a is below 1e-30, all codes are 0. What is not finite
/// makes the scale so.
///
/// Shapes  x (n); codes, scales, starts, sums: the row's first places (see CodedRows), filled up to
///         groups * group.
/// Values  `start` times the sum of a group's codes is its entry of starts.
using RowCoder = void (*)(const float* x, float factor, std::ptrdiff_t n, std::ptrdiff_t group,
                          std::ptrdiff_t groups, std::int32_t start, std::ptrdiff_t stride,
                          std::int8_t* codes, float* scales, std::int32_t* starts,
                          float* sums) noexcept;

/// For one format of weights.
struct CodedKernels {
  CodedDecoder decode = nullptr;
  RowCoder code_row = nullptr;
  WidenedProduct widened[2] = {};  // of one row, and of two
  std::ptrdiff_t widened_side_panels = 0;
  SideWidenedProduct widened_side_by_side = nullptr;  // of widened_side_panels panels, or null
  std::int32_t start = 0;                             // of products, for each unit of a group's sum
  std::ptrdiff_t most_rows = 0;                       // of a tile
  CodedProduct of_rows[most_tile_rows] = {};          // of_rows[r - 1] for r rows
  CodedProduct in_streams[most_tile_rows] = {};       // or null, where rows are few
  std::ptrdiff_t side_panels = 0;
  SideCodedProduct side_by_side = nullptr;  // of side_panels panels, or null
};

}  // namespace moe::inline MOE_ABI::kernels
