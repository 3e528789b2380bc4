// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Matrix products on the library's kernels, for what surrounds the experts in training.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <Eigen/Core>

#include <moe/core/aligned_buffer.hpp>
#include <moe/core/contracts.hpp>
#include <moe/core/panels.hpp>
#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/training/parameter.hpp"

namespace language_model::training {

inline constexpr Index panel_width = moe::kernels::panel_width;

/// Values that stand together, as an array of Eigen's.
template <class Scalar>
auto values_at(Scalar* values, Index count) {
  using Plain = Eigen::Array<std::remove_const_t<Scalar>, Eigen::Dynamic, 1>;
  using Array = std::conditional_t<std::is_const_v<Scalar>, const Plain, Plain>;
  return Eigen::Map<Array>(values, count);
}

/// Values, whose number the compiler knows, times `scale`.
template <Index count, class Scalar>
void scale_values(const Scalar* from, Scalar scale, Scalar* to) {
  using Array = Eigen::Array<Scalar, count, 1>;
  Eigen::Map<Array>{to} = scale * Eigen::Map<const Array>{from};
}

/// The right factor of a product, in panels of 32 columns: (inner, 32) each.
template <class Scalar>
class Panels {
 public:
  /// B = m^T: x B is what a linear layer with weight m (outputs, inner) gives.
  void pack_rows(MatrixView<const Scalar> m) {
    resize(m.cols(), m.rows());
    for (Index o = 0; o < m.rows(); ++o) {
      Scalar* const to = begin_of(o / panel_width) + o % panel_width;
      for (Index k = 0; k < inner_; ++k) to[k * panel_width] = m(o, k);
    }
    fill_up();
  }

  /// B = m (inner, outputs), times `scale`. Parallel if there is much of it.
  void pack_columns(MatrixView<const Scalar> m, Scalar scale = 1) {
    resize(m.rows(), m.cols());
    const auto pack = [&](Index begin, Index end) {
      for (Index p = 0; p < count(); ++p) {
        const Scalar* const from = m.data() + p * panel_width;
        Scalar* const to = begin_of(p);
        if (columns(p) == panel_width) {
          for (Index k = begin; k < end; ++k)
            scale_values<panel_width>(from + k * m.row_stride(), scale, to + k * panel_width);
        } else {
          for (Index k = begin; k < end; ++k)
            values_at(to + k * panel_width, columns(p)) =
                scale * values_at(from + k * m.row_stride(), columns(p));
        }
      }
    };
    if (inner_ > 1024) {
      moe::parallel::for_each_block(inner_, 256, pack);
    } else {
      pack(0, inner_);
    }
    fill_up();
  }

  Index inner() const noexcept { return inner_; }
  Index outputs() const noexcept { return outputs_; }
  Index count() const noexcept { return (outputs_ + panel_width - 1) / panel_width; }
  /// Columns of panel p.
  Index columns(Index p) const noexcept {
    return std::min(panel_width, outputs_ - p * panel_width);
  }
  const Scalar* panel(Index p, Index k = 0) const noexcept {
    return values_.data() + (p * inner_ + k) * panel_width;
  }

 private:
  Scalar* begin_of(Index p) noexcept { return values_.data() + p * inner_ * panel_width; }

  void resize(Index inner, Index outputs) {
    inner_ = inner;
    outputs_ = outputs;
    values_.grow(static_cast<std::size_t>(inner * count() * panel_width));
  }

  void fill_up() {
    const Index left = count() * panel_width - outputs_;
    if (left == 0) return;
    for (Index k = 0; k < inner_; ++k)
      std::fill_n(begin_of(count() - 1) + (k + 1) * panel_width - left, left, Scalar(0));
  }

  Index inner_ = 0;
  Index outputs_ = 0;
  moe::AlignedBuffer<Scalar> values_;
};

/// Some rows of a left factor, on one thread.
template <class Scalar>
class RowTile {
 public:
  static Index most_rows() { return moe::kernels::tile_kernels<Scalar, Scalar>().most_rows; }

  /// This thread's, whose memory is reused.
  static RowTile& of_thread() {
    static thread_local RowTile tile;
    return tile;
  }

  /// Rows first .. first + count - 1 of a, the first `inner` columns, times `scale`.
  void take_rows(MatrixView<const Scalar> a, Index first, Index count, Index inner,
                 Scalar scale = 1) {
    resize(count, inner);
    const Scalar* row[moe::kernels::most_tile_rows];
    Scalar scales[moe::kernels::most_tile_rows];
    for (Index r = 0; r < count; ++r) {
      row[r] = a.row(first + r);
      scales[r] = scale;
    }
    moe::kernels::row_kernels<Scalar>().pack(row, scales, count, inner, packed());
  }

  /// Rows first .. first + count - 1 of a^T: columns of a, from its row `begin` on.
  void take_columns(MatrixView<const Scalar> a, Index first, Index count, Index begin = 0) {
    resize(count, a.rows() - begin);
    for (Index k = 0; k < inner_; ++k)
      copy_few(a.row(begin + k) + first, count, packed() + k * count);
  }

  /// out (rows, columns), or out +=, the product with a panel (inner, 32).
  void multiply(const Scalar* panel, Index columns, Scalar* out, Index stride, bool adds) {
    for (Index r = 0; r < rows_ && adds; ++r)
      copy_few(out + r * stride, columns, sums() + r * panel_width);
    moe::kernels::tile_kernels<Scalar, Scalar>().of_rows[rows_ - 1](
        packed(), panel, inner_, sums(), adds, reinterpret_cast<const char*>(panel), 0);
    moe::kernels::row_kernels<Scalar>().finish(sums(), nullptr, nullptr, rows_, columns, out,
                                               stride);
  }

 private:
  /// Four at a time, where fewer are left the last four once more: a call of memcpy takes longer
  /// than the few values of a tile do.
  static void copy_few(const Scalar* from, Index count, Scalar* to) {
    constexpr Index step = 4;
    if (count < step) {
      std::copy_n(from, count, to);
    } else {
      for (Index i = 0; i < count - step; i += step) std::copy_n(from + i, step, to + i);
      std::copy_n(from + count - step, step, to + count - step);
    }
  }

  static constexpr Index sums_size = moe::kernels::most_tile_rows * panel_width;

  void resize(Index rows, Index inner) {
    rows_ = rows;
    inner_ = inner;
    memory_.grow(static_cast<std::size_t>(sums_size + rows * inner));
  }
  Scalar* sums() noexcept { return memory_.data(); }
  Scalar* packed() noexcept { return memory_.data() + sums_size; }

  Index rows_ = 0;
  Index inner_ = 0;
  moe::AlignedBuffer<Scalar> memory_;
};

namespace detail {

template <class Scalar>
void check_sizes(const char* where, Index inner, Index rows, const Panels<Scalar>& b,
                 MatrixView<const Scalar> c) {
  moe::detail::check_size(where, "the inner size", b.inner(), inner);
  moe::detail::check_size(where, "c.rows()", rows, c.rows());
  moe::detail::check_size(where, "c.cols()", b.outputs(), c.cols());
}

/// Cuts a product into tasks of a tile's rows and some panels; take(tile, first, count) packs rows.
template <class Scalar, class Take>
void multiply(Index rows, const Panels<Scalar>& b, MatrixView<Scalar> c, bool adds,
              const Take& take) {
  const Index most = RowTile<Scalar>::most_rows();
  const Index blocks = (rows + most - 1) / most;
  const Index wanted = moe::parallel::available_threads() * 8;
  const Index parts = std::clamp<Index>(wanted / std::max<Index>(blocks, 1), 1, b.count());
  moe::parallel::for_each_task(blocks * parts, [&](Index task, int /*thread*/) {
    const Index first = rows * (task / parts) / blocks;
    const Index count = rows * (task / parts + 1) / blocks - first;
    RowTile<Scalar>& tile = RowTile<Scalar>::of_thread();
    take(tile, first, count);
    const Index part = task % parts;
    for (Index p = b.count() * part / parts; p < b.count() * (part + 1) / parts; ++p)
      tile.multiply(b.panel(p), b.columns(p), c.row(first) + p * panel_width, c.row_stride(), adds);
  });
}

}  // namespace detail

/// c = a b, or c += a b.
///
/// Shapes  a (rows, inner), c (rows, outputs of b).
/// Throws  ShapeError if sizes differ.
/// Values  the same bits for any number of threads.
template <class Scalar>
void multiply(std::type_identity_t<MatrixView<const Scalar>> a, const Panels<Scalar>& b,
              std::type_identity_t<MatrixView<Scalar>> c, bool adds = false) {
  detail::check_sizes<Scalar>("multiply", a.cols(), a.rows(), b, c);
  detail::multiply<Scalar>(a.rows(), b, c, adds,
                           [&](RowTile<Scalar>& tile, Index first, Index count) {
                             tile.take_rows(a, first, count, a.cols());
                           });
}

/// c = a^T b, or c += a^T b.
///
/// Shapes  a (inner, rows), c (rows, outputs of b).
/// Throws  ShapeError if sizes differ.
template <class Scalar>
void multiply_transposed(std::type_identity_t<MatrixView<const Scalar>> a, const Panels<Scalar>& b,
                         std::type_identity_t<MatrixView<Scalar>> c, bool adds = false) {
  detail::check_sizes<Scalar>("multiply_transposed", a.rows(), a.cols(), b, c);
  detail::multiply<Scalar>(
      a.cols(), b, c, adds,
      [&](RowTile<Scalar>& tile, Index first, Index count) { tile.take_columns(a, first, count); });
}

}  // namespace language_model::training
