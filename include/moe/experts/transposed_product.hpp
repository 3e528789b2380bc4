// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products with the transposed weights, whose panels are made in the cache.
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

/// Memory of one thread for a slice of a transposed panel, `size` values.
template <class Scalar>
struct TransposedPanel {
  /// Of the inner dimension. Fewer tiles than a slice has blocks leave some of the next slice's
  /// blocks unasked for; 512 and 2048 were as fast, within noise.
  static constexpr Index slice = 1024;
  static constexpr Index block_size = kernels::panel_width * kernels::panel_width;
  static constexpr Index size = slice * kernels::panel_width + block_size;

  Scalar* panel;

  /// A block before it is transposed, where it does not lie ready.
  Scalar* block() const noexcept { return panel + slice * kernels::panel_width; }
};

struct Columns {
  Index from;
  Index end;
};

/// sums (rows, 32) of a piece: rows kept by block, (inner, rows of the block), times the first 32
/// of the columns of a matrix, or as many as there are. `block_of(p, from)` gives for the p-th 32
/// of the inner dimension the transposed block of columns from `from` on: (columns, 32).
///
/// While a slice is in use, blocks of the next one are asked for, or those of the panel that this
/// thread is likely to take next: they lie a panel apart, where no hardware foresees them. With
/// blocks transposed from where they lie, that took backward passes from 290 to 310 Gflop/s, where
/// the forward had 350.
template <class Storage, class Scalar, class BlockOf>
void multiply_transposed(const RowPiece& piece, const Scalar* rows, Index inner, Columns columns,
                         Index num_threads, const BlockOf& block_of, TransposedPanel<Scalar> memory,
                         Scalar* sums) {
  constexpr Index width = kernels::panel_width;
  constexpr Index slice = TransposedPanel<Scalar>::slice;
  constexpr Index block_bytes = width * width * static_cast<Index>(sizeof(Storage));
  const auto& tiles = kernels::tile_kernels<Scalar, Scalar>();
  const auto transpose = kernels::transpose_kernel<Scalar>();
  const Index size = std::min(width, columns.end - columns.from);
  if (size < width) std::fill_n(memory.block(), width * width, Scalar(0));
  for (Index k = 0; k < inner; k += slice) {
    const Index count = std::min(slice, inner - k);
    for (Index i = 0; i < count; i += width) {
      const Storage* const block = block_of((k + i) / width, columns.from);
      Scalar* const to = memory.panel + i * width;
      if constexpr (std::is_same_v<Storage, Scalar>) {
        if (size == width) {
          transpose(block, to);
          continue;
        }
      }
      for (Index j = 0; j < size * width; ++j) memory.block()[j] = load_as<Scalar>(block[j]);
      transpose(memory.block(), to);
    }
    const bool is_last = k + count >= inner;
    const Index next_k = is_last ? 0 : k + slice;
    const Index next_from = is_last ? columns.from + width * num_threads : columns.from;
    const Index next_blocks =
        next_from < columns.end ? std::min(slice, inner - next_k) / width : Index{0};
    for (Index b = 0; b < piece.blocks; ++b) {
      const Index first = piece.block_row(b);
      const Index tile_rows = piece.block_row(b + 1) - first;
      const void* next = memory.panel;
      if (b < next_blocks) next = block_of(next_k / width + b, next_from);
      tiles.of_rows[tile_rows - 1](rows + first * inner + k * tile_rows, memory.panel, count,
                                   sums + first * width, k > 0, static_cast<const char*>(next),
                                   (block_bytes + count - 1) / count);
    }
  }
}

}  // namespace moe::inline MOE_ABI::detail
