// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The matrices of E experts in the order in which kernels read them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI::detail {

/// Where output o of one matrix lies among the columns of its panels.
enum class PanelRole {
  plain,  ///< o itself
  gate,   ///< the first half of a panel
  up,     ///< the second half
};

inline Index panel_column(PanelRole role, Index output) noexcept {
  constexpr Index width = kernels::gated_width;
  if (role == PanelRole::plain) return output;
  return output / width * kernels::panel_width + output % width +
         (role == PanelRole::up ? width : 0);
}

/// E matrices of the same size, each in panels of 32 outputs: panel p of matrix e is (inner, 32),
/// contiguous and 64-byte aligned. Outputs that fill up the last panel have zero weights.
///
/// What stores several weights in one value, or scales beside them, specialises this class: who
/// multiplies asks it where a slice of a panel begins and how far slices reach, and hands the
/// pointer to that storage's kernel.
template <class Storage>
class PackedMatrices {
 public:
  PackedMatrices() = default;

  /// `columns` counts outputs as `panel_column` places them.
  PackedMatrices(Index count, Index columns, Index inner)
      : panels_((columns + kernels::panel_width - 1) / kernels::panel_width),
        inner_(inner),
        values_(static_cast<std::size_t>(product("PackedMatrices",
                                                 product("PackedMatrices", count, inner),
                                                 panels_ * kernels::panel_width))) {}

  Index panels() const noexcept { return panels_; }
  Index inner() const noexcept { return inner_; }
  std::size_t panel_bytes() const noexcept {
    return static_cast<std::size_t>(inner_ * kernels::panel_width) * sizeof(Storage);
  }
  static constexpr double weight_bytes() noexcept { return sizeof(Storage); }
  /// Slices of the inner dimension begin at multiples of this.
  static constexpr Index slice_step() noexcept { return 1; }

  /// Panel p of a matrix from inner row k on.
  const Storage* panel(Index matrix, Index p, Index k = 0) const noexcept {
    return values_.data() + ((matrix * panels_ + p) * inner_ + k) * kernels::panel_width;
  }

  Storage* panel(Index matrix, Index p, Index k = 0) noexcept {
    return const_cast<Storage*>(std::as_const(*this).panel(matrix, p, k));
  }

  /// All matrices as they lie, padding included.
  std::span<Storage> values() noexcept { return {values_.data(), values_.size()}; }
  std::span<const Storage> values() const noexcept { return {values_.data(), values_.size()}; }

  /// Shapes  weights (outputs, inner).
  template <class Scalar>
  void pack(Index matrix, PanelRole role, MatrixView<const Scalar> weights) {
    // Of 32 rows, which one panel interleaves, as many columns at a time as fill a few lines.
    constexpr Index block = 64;
    for (Index first = 0; first < weights.rows(); first += kernels::gated_width) {
      const Index last = std::min(first + kernels::gated_width, weights.rows());
      for (Index begin = 0; begin < inner_; begin += block) {
        const Index end = std::min(begin + block, inner_);
        for (Index o = first; o < last; ++o) {
          Storage* const to = column(matrix, panel_column(role, o));
          const Scalar* const from = weights.row(o);
          for (Index k = begin; k < end; ++k)
            to[k * kernels::panel_width] = store_as<Storage>(from[k]);
        }
      }
    }
  }

  /// The inverse of `pack`.
  template <class Scalar>
  void unpack(Index matrix, PanelRole role, MatrixView<Scalar> weights) const {
    for (Index o = 0; o < weights.rows(); ++o) {
      const Storage* const from = column(matrix, panel_column(role, o));
      for (Index k = 0; k < inner_; ++k)
        weights(o, k) = load_as<Scalar>(from[k * kernels::panel_width]);
    }
  }

 private:
  const Storage* column(Index matrix, Index c) const noexcept {
    return panel(matrix, c / kernels::panel_width) + c % kernels::panel_width;
  }
  Storage* column(Index matrix, Index c) noexcept {
    return const_cast<Storage*>(std::as_const(*this).column(matrix, c));
  }

  Index panels_ = 0;
  Index inner_ = 0;
  AlignedBuffer<Storage> values_;
};

}  // namespace moe::inline MOE_ABI::detail
