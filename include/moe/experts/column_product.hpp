// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products of a piece of rows with the transposed weights, as they lie.
#pragma once

#include <algorithm>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI::detail {

/// What a task takes of a product: at most 256 columns, whose weights it meets in slices of 256
/// inner values. A slice stays in the second-level cache for all of a piece's rows; of the rows, 32
/// at a time meet all columns, 32 KiB in float, which some first-level caches keep, too.
struct ColumnProduct {
  static constexpr Index most_columns = 256;
  static constexpr Index slice = 256;
  static constexpr Index copy_size =
      slice / kernels::panel_width * most_columns * kernels::column_stride;

  Index from;   // the first column
  Index count;  // of columns
  Index next;   // the first column of the task that this thread is likely to take next, or -1
};

/// sums (panels, most_columns, 32): for each of a piece's row panels, columns of (rows times a
/// matrix). Its weights lie in `matrix` (inner / 32, columns, 32), blocks `stride` apart; rows
/// (panels, inner, 32) lie `rows_stride` apart. `copy` has room for ColumnProduct::copy_size values
/// of the weights: the kernels want them as Scalar and kernels::column_stride apart.
///
/// While a slice is in use, the next one is asked for, or that of the next task: its blocks lie a
/// panel apart, where no hardware foresees them.
template <class Storage, class Scalar>
void multiply_columns(const RowPiece& piece, const Scalar* rows, Index rows_stride, Index inner,
                      const ColumnProduct& work, const Storage* matrix, Index stride, Scalar* copy,
                      Scalar* sums) {
  constexpr Index width = kernels::panel_width;
  constexpr Index most = ColumnProduct::slice;
  constexpr auto bytes = static_cast<Index>(sizeof(Storage));
  const auto& tiles = kernels::column_kernels<Scalar>();
  const Index num_tiles = (work.count + tiles.most_columns - 1) / tiles.most_columns;
  for (Index k = 0; k < inner; k += most) {
    const Index count = std::min(most, inner - k);
    const Storage* const block = matrix + k / width * stride + work.from * width;
    const Index copy_stride = work.count * kernels::column_stride;
    for (Index p = 0; p * width < count; ++p) {
      const Storage* const from = block + p * stride;
      Scalar* const to = copy + p * copy_stride;
      if constexpr (std::is_same_v<Storage, Scalar>) {
        tiles.spread(from, work.count, to);
      } else {
        for (Index c = 0; c < work.count; ++c)
          for (Index i = 0; i < width; ++i)
            to[c * kernels::column_stride + i] = load_as<Scalar>(from[c * width + i]);
      }
    }
    const bool is_last = k + count >= inner;
    const bool asks = !is_last || work.next >= 0;
    const Storage* const next = matrix + (is_last ? 0 : (k + most) / width * stride) +
                                (is_last ? std::max<Index>(work.next, 0) : work.from) * width;
    for (Index n = 0; n < piece.panels(); ++n) {
      const Index part = (piece.panel_rows(n) + width / 2 - 1) / (width / 2) * (width / 2);
      for (Index t = 0; t < num_tiles; ++t) {
        const Index first = work.count * t / num_tiles;
        const Index columns = work.count * (t + 1) / num_tiles - first;
        // Each panel of rows asks for its share of the lines.
        const Index share = (columns * width * bytes + piece.panels() - 1) / piece.panels();
        const Index step = (share + width - 1) / width;
        const char* const begin =
            reinterpret_cast<const char*>(next + first * width) + n * step * width;
        tiles.of_columns[columns - 1](
            copy + first * kernels::column_stride, copy_stride, rows + n * rows_stride + k * width,
            count, sums + (n * ColumnProduct::most_columns + first) * width, k > 0, part,
            asks ? kernels::Lines{begin, step, stride * bytes}
                 : kernels::Lines{reinterpret_cast<const char*>(copy), 0, 0});
      }
    }
  }
}

}  // namespace moe::inline MOE_ABI::detail
