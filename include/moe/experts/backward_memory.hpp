// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the backward pass of a bank keeps of a group of rows, and where.
#pragma once

#include <cstddef>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/column_product.hpp"
#include "moe/kernels/kernel_table.hpp"

namespace moe::inline MOE_ABI::detail {

/// Grows only. A row panel is 32 rows of a piece, transposed: (columns, 32).
template <class Scalar>
class BackwardMemory {
 public:
  /// As many rows as give the products of the weights' gradients a long inner dimension, whose
  /// panels stay in the second-level cache.
  static constexpr Index most_piece_rows = 512;

  void grow(const BackwardSizes& sizes, Index panels, Index threads) {
    const auto of_panels = [&](AlignedBuffer<Scalar>& buffer, Index values) {
      buffer.grow(static_cast<std::size_t>(panels * values));
    };
    of_panels(dy_, sizes.filled * width);
    of_panels(dy_panels_, sizes.filled * width);
    of_panels(x_, x_stride(sizes));
    of_panels(hidden_, hidden_stride(sizes));
    of_panels(d_sums_, sizes.sums * width);
    of_panels(d_sums_panels_, sizes.sums * width);
    of_panels(products_, sizes.hidden_blocks * width);
    of_panels(weights_, width);
    threads_.grow(static_cast<std::size_t>(threads * thread_size));
  }

  // Row panel n of a piece, of dy and dZ.
  Scalar* dy_of(const BackwardSizes& sizes, const RowPiece& piece, Index n) noexcept {
    return dy_.data() + (piece.first_panel + n) * sizes.filled * width;
  }
  Scalar* d_sums_of(const BackwardSizes& sizes, const RowPiece& piece, Index n) noexcept {
    return d_sums_.data() + (piece.first_panel + n) * sizes.sums * width;
  }

  // The same of x and A, whose columns lie kernels::column_stride values apart.
  static Index x_stride(const BackwardSizes& sizes) noexcept {
    return (sizes.filled + gap) * kernels::column_stride;
  }
  Scalar* x_of(const BackwardSizes& sizes, const RowPiece& piece, Index n) noexcept {
    return x_.data() + (piece.first_panel + n) * x_stride(sizes);
  }
  static Index hidden_stride(const BackwardSizes& sizes) noexcept {
    return (sizes.hidden_blocks * width + gap) * kernels::column_stride;
  }
  Scalar* hidden_of(const BackwardSizes& sizes, const RowPiece& piece, Index n) noexcept {
    return hidden_.data() + (piece.first_panel + n) * hidden_stride(sizes);
  }

  /// w dy of a piece, (rows, 32) for each panel of the down weights.
  Scalar* dy_panels(const BackwardSizes& sizes, const RowPiece& piece) noexcept {
    return dy_panels_.data() + piece.at() * sizes.filled;
  }
  /// dZ of a piece, (rows, 32) for each panel of the up weights.
  Scalar* d_sums_panels(const BackwardSizes& sizes, const RowPiece& piece) noexcept {
    return d_sums_panels_.data() + piece.at() * sizes.sums;
  }
  /// Shares of <dA', A> of a piece, (row panels, 32) for each 32 hidden values.
  Scalar* products(const BackwardSizes& sizes, const RowPiece& piece) noexcept {
    return products_.data() + piece.at() * sizes.hidden_blocks;
  }
  /// Routing weights of a piece's rows.
  Scalar* weights(const RowPiece& piece) noexcept { return weights_.data() + piece.at(); }

  struct OfThread {
    Scalar* sums;      // of a piece's rows with a task's columns
    Scalar* d_hidden;  // w dA' of a block
    Scalar* hidden;    // A of a block
    Scalar* factors;   // of dropout, of a block
    Scalar* copy;      // of weights
  };
  OfThread of_thread(int thread) noexcept {
    Scalar* const sums = threads_.data() + thread * thread_size;
    Scalar* const blocks = sums + sums_size;
    return {sums, blocks, blocks + block_size, blocks + 2 * block_size, blocks + 3 * block_size};
  }

 private:
  static constexpr Index width = kernels::panel_width;
  static constexpr Index block_size = width * width;
  static constexpr Index sums_size = most_piece_rows * ColumnProduct::most_columns;
  static constexpr Index thread_size = sums_size + 3 * block_size + ColumnProduct::copy_size;
  // Columns between the row panels of x and A, so that those of a tile do not lie in the same sets
  // of a cache.
  static constexpr Index gap = kernels::most_tile_rows;

  AlignedBuffer<Scalar> dy_;
  AlignedBuffer<Scalar> dy_panels_;
  AlignedBuffer<Scalar> x_;
  AlignedBuffer<Scalar> hidden_;
  AlignedBuffer<Scalar> d_sums_;
  AlignedBuffer<Scalar> d_sums_panels_;
  AlignedBuffer<Scalar> products_;
  AlignedBuffer<Scalar> weights_;
  AlignedBuffer<Scalar> threads_;
};

}  // namespace moe::inline MOE_ABI::detail
