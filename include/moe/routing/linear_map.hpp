// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// LinearMap: y = x W^T for a router's weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI::detail {

/// Holds a matrix, packed.
template <class ScalarT>
class LinearMap {
 public:
  using Scalar = ScalarT;

  LinearMap() = default;
  explicit LinearMap(const Matrix<Scalar>& weight)
      : outputs_(weight.rows()), packed_(1, weight.rows(), weight.cols()) {
    packed_.template pack<Scalar>(0, PanelRole::plain, weight);
  }

  /// The matrix (outputs, inner) as it was given.
  Matrix<Scalar> weight() const {
    Matrix<Scalar> weight(outputs_, inner());
    packed_.template unpack<Scalar>(0, PanelRole::plain, weight);
    return weight;
  }
  Index outputs() const noexcept { return outputs_; }
  Index inner() const noexcept { return packed_.inner(); }
  bool empty() const noexcept { return outputs() == 0 || inner() == 0; }

  /// y = x W^T, or y += x W^T.
  ///
  /// Shapes  x (T, inner), y (T, outputs).
  /// Values  a row has the same bits whatever the others and the number of threads.
  /// Cost    2 T inner outputs flop, parallel over rows and, where those are few, panels.
  void run(MatrixView<const Scalar> x, MatrixView<Scalar> y, bool adds = false) const {
    MOE_ASSERT(x.cols() == inner() && y.cols() == outputs() && x.rows() == y.rows());
    if (x.rows() == 0) return;
    const Index most = kernels::tile_kernels<Scalar, Scalar>().most_rows;
    const Index blocks = (x.rows() + most - 1) / most;
    const Index wanted = Index{4} * parallel::available_threads();
    const Index parts = std::clamp<Index>(wanted / blocks, 1, packed_.panels());
    // Of this thread, with a part for each worker: who runs which task differs from call to call.
    struct Packed;
    const Index part_size = sums_size + most * inner();
    Scalar* const memory = thread_buffer<Packed, Scalar>(
        static_cast<std::size_t>(parallel::available_threads() * part_size));
    parallel::for_each_task(blocks * parts, [&](Index task, int thread) {
      const Index begin = x.rows() * (task / parts) / blocks;
      const Index end = x.rows() * (task / parts + 1) / blocks;
      const Index part = task % parts;
      run_block(x.middle_rows(begin, end - begin), packed_.panels() * part / parts,
                packed_.panels() * (part + 1) / parts, adds, memory + thread * part_size,
                y.middle_rows(begin, end - begin));
    });
  }

 private:
  static constexpr Index sums_size = kernels::most_tile_rows * kernels::panel_width;

  /// Some panels for rows of one tile.
  void run_block(MatrixView<const Scalar> x, Index first_panel, Index last_panel, bool adds,
                 Scalar* sums, MatrixView<Scalar> y) const {
    constexpr Index width = kernels::panel_width;
    const auto& tiles = kernels::tile_kernels<Scalar, Scalar>();
    const auto& rows = kernels::row_kernels<Scalar>();
    Scalar* const packed = sums + sums_size;
    const Scalar* row[kernels::most_tile_rows];
    for (Index r = 0; r < x.rows(); ++r) row[r] = x.row(r);
    rows.pack(row, nullptr, x.rows(), inner(), packed);
    for (Index p = first_panel; p < last_panel; ++p) {
      const Scalar* const panel = packed_.panel(0, p);
      tiles.of_rows[x.rows() - 1](packed, panel, inner(), sums, false,
                                  reinterpret_cast<const char*>(panel), 0);
      const Index columns = std::min(width, outputs() - p * width);
      if (adds) {
        for (Index r = 0; r < x.rows(); ++r)
          for (Index o = 0; o < columns; ++o) y(r, p * width + o) += sums[r * width + o];
      } else {
        rows.finish(sums, nullptr, nullptr, x.rows(), columns, y.row(0) + p * width,
                    y.row_stride());
      }
    }
  }

  Index outputs_ = 0;
  PackedMatrices<Scalar> packed_;
};

/// c (n, m) += a^T b. One task sums up all rows of a and b, in order, for some columns: the bits do
/// not depend on the number of threads.
///
/// Shapes  a (T, n), b (T, m).
template <class Scalar>
void add_transposed_product(MatrixView<const Scalar> a, MatrixView<const Scalar> b,
                            Matrix<Scalar>& c) {
  constexpr Index block = 64;
  const Index tokens = b.rows();
  const Matrix<Scalar> columns = a.map().transpose();  // (n, T)
  parallel::for_each_block(b.cols(), block, [&](Index begin, Index end) {
    const auto& kernels = kernels::row_kernels<Scalar>();
    std::vector<const Scalar*> rows(static_cast<std::size_t>(tokens));
    for (Index t = 0; t < tokens; ++t) rows[static_cast<std::size_t>(t)] = b.row(t) + begin;
    Scalar sum[block];
    for (Index e = 0; e < c.rows(); ++e) {
      kernels.weighted_sum(rows.data(), row_data(columns, e), tokens, end - begin, sum);
      for (Index d = begin; d < end; ++d) c(e, d) += sum[d - begin];
    }
  });
}

/// c (T, m) += scale a b, element by element with `scale` (T, m), or without where it is empty. A
/// row has the same bits whatever the others and the number of threads.
///
/// Shapes  a (T, n), b (n, m).
template <class Scalar>
void add_product(MatrixView<const Scalar> a, const Matrix<Scalar>& b,
                 MatrixView<const Scalar> scale, MatrixView<Scalar> c) {
  std::vector<const Scalar*> rows(static_cast<std::size_t>(b.rows()));
  for (Index e = 0; e < b.rows(); ++e) rows[static_cast<std::size_t>(e)] = row_data(b, e);
  parallel::for_each_block(c.rows(), 16, [&](Index begin, Index end) {
    const auto& kernels = kernels::row_kernels<Scalar>();
    std::vector<Scalar> sum(static_cast<std::size_t>(c.cols()));
    for (Index t = begin; t < end; ++t) {
      kernels.weighted_sum(rows.data(), a.row(t), b.rows(), c.cols(), sum.data());
      for (Index d = 0; d < c.cols(); ++d)
        c(t, d) += scale.empty() ? sum[static_cast<std::size_t>(d)]
                                 : scale(t, d) * sum[static_cast<std::size_t>(d)];
    }
  });
}

}  // namespace moe::inline MOE_ABI::detail
