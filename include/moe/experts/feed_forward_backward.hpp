// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a bank of feed-forward experts: three products for each of the forward's
// two, all on the kernels of the forward.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/hidden_dropout.hpp"
#include "moe/experts/packed_experts.hpp"
#include "moe/experts/panel_product.hpp"
#include "moe/experts/transposed_product.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a backward. Its memory grows only.
///
/// With A = act(Z), weight w and dA' = dy W_down of a row: dw = <dA', A>, so that no output is
/// needed; dZ = w dA' act'(Z); dx = dZ W_up; dW_down = sum (w dy) A^T, dW_up = sum dZ x^T.
/// dA' and dx need panels of the transposed weights, which a task makes in its thread's cache from
/// blocks of 32 by 32, which lie together. A product of a weight's gradient has its rows for inner
/// dimension and adds a tile onto the packed gradient where it lies. Sums run over the rows in
/// order, by one task each: the bits do not depend on the number of threads.
template <class Scalar>
class FeedForwardBackward {
 public:
  template <bool gated, class Storage, class ActivationT>
  void run(const PackedExperts<Scalar, gated, Storage>& weights, const ActivationT& activation,
           const BankBackward<Scalar>& call, PackedExperts<Scalar, gated>& gradients) {
    tile_rows_ = kernels::tile_kernels<Scalar, Scalar>().most_rows;
    const BackwardSizes sizes(weights);
    for_each_group(
        call.input.plan, tile_rows_, most_piece_rows, most_group_rows, pieces_,
        [&](Index rows) { run_group(weights, activation, call, gradients, sizes, rows); });
  }

 private:
  // As many rows as keep a tile's sums in the cache beside a slice of a transposed panel, and give
  // the products of the weights' gradients a long inner dimension.
  static constexpr Index most_piece_rows = 512;
  static constexpr Index most_group_rows = 1024;
  static constexpr Index width = kernels::panel_width;

  enum class Step { pack, hidden, input, up, down, weight };

  struct Task {
    Step step;
    Index piece;
    Index index;  // of the block or panel
  };

  template <bool gated, class Storage, class ActivationT>
  void run_group(const PackedExperts<Scalar, gated, Storage>& weights,
                 const ActivationT& activation, const BankBackward<Scalar>& call,
                 PackedExperts<Scalar, gated>& gradients, const BackwardSizes& sizes, Index rows) {
    const auto grow = [&](AlignedBuffer<Scalar>& buffer, Index values) {
      buffer.grow(static_cast<std::size_t>(rows * values));
    };
    grow(dy_, sizes.d_model);
    grow(dy_panels_, sizes.filled);
    grow(x_, sizes.d_model);
    grow(hidden_, sizes.d_ff);
    grow(d_sums_, sizes.sums);
    grow(d_sums_panels_, sizes.sums);
    grow(products_, sizes.up_panels);
    grow(weight_, 1);
    num_threads_ = parallel::available_threads();
    threads_.grow(static_cast<std::size_t>(num_threads_) * thread_size());

    tasks_.clear();
    add_tasks(Step::pack, [](const RowPiece& piece) { return piece.blocks; });
    run_tasks([&](const Task& task, int) { pack(call, sizes, piece_of(task), task.index); });
    tasks_.clear();
    const Index hidden_panels = (sizes.d_ff + width - 1) / width;
    add_tasks(Step::hidden, [&](const RowPiece&) { return hidden_panels; });
    run_tasks([&](const Task& task, int thread) {
      find_hidden(weights, activation, call, sizes, piece_of(task), task.index, thread);
    });
    tasks_.clear();
    add_tasks(Step::input, [&](const RowPiece&) { return sizes.down_panels; });
    const auto unless_frozen = [&](Index count) {
      return [&call, count](const RowPiece& piece) {
        return call.is_frozen(piece.expert) ? Index{0} : count;
      };
    };
    add_tasks(Step::up, unless_frozen(sizes.up_panels));
    add_tasks(Step::down, unless_frozen(sizes.down_panels));
    if (!call.d_weights.empty()) add_tasks(Step::weight, [](const RowPiece&) { return Index{1}; });
    run_tasks([&](const Task& task, int thread) {
      const RowPiece& piece = piece_of(task);
      if (task.step == Step::input) {
        find_input(weights, call, sizes, piece, task.index, thread);
      } else if (task.step == Step::up) {
        find_up(gradients, sizes, piece, task.index);
      } else if (task.step == Step::down) {
        find_down(gradients, call, sizes, piece, task.index);
      } else {
        find_weights(weights, call, sizes, piece);
      }
    });
  }

  const RowPiece& piece_of(const Task& task) const noexcept {
    return pieces_[static_cast<std::size_t>(task.piece)];
  }

  template <class Count>
  void add_tasks(Step step, const Count& count) {
    for (std::size_t p = 0; p < pieces_.size(); ++p)
      for (Index i = 0; i < count(pieces_[p]); ++i)
        tasks_.push_back({step, static_cast<Index>(p), i});
  }

  template <class Body>
  void run_tasks(const Body& body) {
    parallel::for_each_task(static_cast<Index>(tasks_.size()), [&](Index task, int thread) {
      body(tasks_[static_cast<std::size_t>(task)], thread);
    });
  }

  static constexpr Index tile_size = kernels::most_tile_rows * width;
  static constexpr std::size_t thread_size() noexcept {
    return static_cast<std::size_t>(most_piece_rows * width + TransposedPanel<Scalar>::size +
                                    3 * tile_size);
  }

  /// Parts of a thread's `thread_size` values.
  struct ThreadMemory {
    Scalar* sums;  // of a piece's rows with one panel
    TransposedPanel<Scalar> panel;
    Scalar* weighted;  // w dA' of a tile
    Scalar* hidden;    // A of a tile
    Scalar* factors;   // of dropout, of a tile
  };
  ThreadMemory memory_of(int thread) noexcept {
    Scalar* const sums = threads_.data() + static_cast<std::size_t>(thread) * thread_size();
    Scalar* const panel = sums + most_piece_rows * width;
    Scalar* const weighted = panel + TransposedPanel<Scalar>::size;
    return {sums, {panel}, weighted, weighted + tile_size, weighted + 2 * tile_size};
  }

  /// Where row `row` of column block c of a matrix stands that is kept by columns, tile_rows_ of
  /// them together: (columns of the block) for each of a piece's rows.
  Scalar* in_columns(Scalar* matrix, Index cols, const RowPiece& piece, Index c, Index row) const {
    const Index first = c * tile_rows_;
    return matrix + piece.at * cols + first * piece.rows +
           row * std::min<Index>(tile_rows_, cols - first);
  }

  /// A block of rows: dy for products with dW's transposed panels, w dy in panels, x by columns.
  void pack(const BankBackward<Scalar>& call, const BackwardSizes& sizes, const RowPiece& piece,
            Index block) {
    const ExpertInput<Scalar>& input = call.input;
    const Scalar* dy[kernels::most_tile_rows];
    const Index first = piece.block_row(block);
    const Index count = piece.block_row(block + 1) - first;
    for (Index r = 0; r < count; ++r) {
      const TokenSlot choice = input.plan.rows[static_cast<std::size_t>(piece.plan_row(first + r))];
      dy[r] = call.dy_row(piece.plan_row(first + r));
      const Scalar weight =
          call.weights.empty() ? Scalar(1) : call.weights(choice.token, choice.slot);
      weight_.data()[piece.at + first + r] = weight;
      for (Index p = 0; p < sizes.down_panels; ++p) {
        const Index columns = std::min(width, sizes.d_model - p * width);
        Scalar* const to =
            dy_panels_.data() + piece.at * sizes.filled + (p * piece.rows + first + r) * width;
        for (Index i = 0; i < columns; ++i) to[i] = weight * dy[r][p * width + i];
        std::fill(to + columns, to + width, Scalar(0));
      }
      const Scalar scale =
          input.factor *
          (input.scales.empty() ? Scalar(1) : input.scales(choice.token, choice.slot));
      const Scalar* const x = input.x.row(choice.token);
      for (Index c = 0; c * tile_rows_ < sizes.d_model; ++c) {
        const Index from = c * tile_rows_;
        const Index columns = std::min<Index>(tile_rows_, sizes.d_model - from);
        Scalar* const to = in_columns(x_.data(), sizes.d_model, piece, c, first + r);
        for (Index i = 0; i < columns; ++i) to[i] = scale * x[from + i];
      }
    }
    kernels::row_kernels<Scalar>().pack(dy, nullptr, count, sizes.d_model,
                                        dy_.data() + (piece.at + first) * sizes.d_model);
  }

  /// 32 hidden values of every row: dA', from it dw's share, dZ, and A again.
  template <bool gated, class Storage, class ActivationT>
  void find_hidden(const PackedExperts<Scalar, gated, Storage>& weights,
                   const ActivationT& activation, const BankBackward<Scalar>& call,
                   const BackwardSizes& sizes, const RowPiece& piece, Index hidden_panel,
                   int thread) {
    static_assert(KernelOf<ActivationT>::exists, "the activation has no gradient");
    const auto gradient_of =
        kernels::activation_gradient_kernel<Scalar, KernelOf<ActivationT>::kind, gated>();
    constexpr Index hidden_width = PackedExperts<Scalar, gated, Storage>::hidden_width;
    const Index from = hidden_panel * width;
    const ThreadMemory memory = memory_of(thread);
    const Scalar* const d_hidden = memory.sums;
    multiply_transposed<Storage>(
        piece, dy_.data() + piece.at * sizes.d_model, sizes.d_model, {from, sizes.d_ff},
        num_threads_,
        [&](Index panel, Index k) { return weights.down.panel(piece.expert, panel, k); },
        memory.panel, memory.sums);
    for (Index b = 0; b < piece.blocks; ++b) {
      const Index first = piece.block_row(b);
      const Index count = piece.block_row(b + 1) - first;
      for (Index part = 0; part < width / hidden_width; ++part) {
        const Index p = from / hidden_width + part;
        if (p >= sizes.up_panels) break;
        const auto d_activated = [&](Index r) {
          return d_hidden + (first + r) * width + part * hidden_width;
        };
        for (Index r = 0; r < count; ++r)
          for (Index i = 0; i < hidden_width; ++i)
            memory.weighted[r * hidden_width + i] =
                weight_.data()[piece.at + first + r] * d_activated(r)[i];
        const bool drops = call.input.dropout.rate > 0;
        for (Index r = 0; r < count && drops; ++r)
          dropout_factors(call.input.dropout,
                          call.input.plan.rows[static_cast<std::size_t>(piece.plan_row(first + r))],
                          call.input.plan.top_k, sizes.d_ff, p * hidden_width, hidden_width,
                          memory.factors + r * hidden_width);
        for (Index i = 0; i < count * hidden_width && drops; ++i)
          memory.weighted[i] *= memory.factors[i];
        const Scalar* const sums =
            call.sums.data() +
            (piece.first_row * sizes.up_panels + p * piece.expert_rows + piece.begin + first) *
                width;
        Scalar* const d_sums =
            d_sums_panels_.data() + piece.at * sizes.sums + (p * piece.rows + first) * width;
        gradient_of(kernel_rule<Scalar>(activation), sums, memory.weighted, count, memory.hidden,
                    d_sums);
        for (Index i = 0; i < count * hidden_width && drops; ++i)
          memory.hidden[i] *= memory.factors[i];
        const Scalar* row[kernels::most_tile_rows];
        for (Index r = 0; r < count; ++r) {
          row[r] = d_sums + r * width;
          Scalar product = 0;
          for (Index i = 0; i < hidden_width; ++i)
            product += d_activated(r)[i] * memory.hidden[r * hidden_width + i];
          products_.data()[piece.at * sizes.up_panels + p * piece.rows + first + r] = product;
          keep_hidden(sizes, piece, first + r, p * hidden_width,
                      std::min(hidden_width, sizes.d_ff - p * hidden_width),
                      memory.hidden + r * hidden_width);
        }
        kernels::row_kernels<Scalar>().pack(
            row, nullptr, count, width,
            d_sums_.data() + (piece.at + first) * sizes.sums + p * width * count);
      }
    }
  }

  /// Hidden values of a row from `from` on, by columns.
  void keep_hidden(const BackwardSizes& sizes, const RowPiece& piece, Index row, Index from,
                   Index count, const Scalar* hidden) {
    for (Index i = 0; i < count;) {
      const Index c = (from + i) / tile_rows_;
      const Index place = (from + i) % tile_rows_;
      const Index run = std::min<Index>(count - i, tile_rows_ - place);
      std::copy_n(hidden + i, run, in_columns(hidden_.data(), sizes.d_ff, piece, c, row) + place);
      i += run;
    }
  }

  /// 32 columns of dx.
  template <bool gated, class Storage>
  void find_input(const PackedExperts<Scalar, gated, Storage>& weights,
                  const BankBackward<Scalar>& call, const BackwardSizes& sizes,
                  const RowPiece& piece, Index panel, int thread) {
    const Index from = panel * width;
    const Index columns = std::min(width, sizes.d_model - from);
    const ThreadMemory memory = memory_of(thread);
    multiply_transposed<Storage>(
        piece, d_sums_.data() + piece.at * sizes.sums, sizes.sums, {from, sizes.d_model},
        num_threads_, [&](Index p, Index k) { return weights.up.panel(piece.expert, p, k); },
        memory.panel, memory.sums);
    kernels::row_kernels<Scalar>().finish(memory.sums, nullptr, nullptr, piece.rows, columns,
                                          call.rows.row(piece.plan_row(0)) + from,
                                          call.rows.row_stride());
  }

  /// Adds sum over the rows of (row's columns)^T (row's 32 values) to a panel (columns, 32).
  void add_outer(const RowPiece& piece, Scalar* by_columns, Index cols, const Scalar* values,
                 Scalar* panel) {
    const auto& tiles = kernels::tile_kernels<Scalar, Scalar>();
    for (Index c = 0; c * tile_rows_ < cols; ++c) {
      const Index first = c * tile_rows_;
      const Index tile_rows = std::min<Index>(tile_rows_, cols - first);
      // The gradient that the next tile adds to is asked for meanwhile.
      Scalar* const sums = panel + first * width;
      const Scalar* const next = sums + tile_rows * width;
      const Index bytes = tile_rows * width * static_cast<Index>(sizeof(Scalar));
      tiles.of_rows[tile_rows - 1](in_columns(by_columns, cols, piece, c, 0), values, piece.rows,
                                   sums, true, reinterpret_cast<const char*>(next),
                                   (bytes + piece.rows - 1) / piece.rows);
    }
  }

  static void add_rows(const Scalar* values, Index rows, Scalar* bias) {
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < width; ++i) bias[i] += values[r * width + i];
  }

  template <bool gated>
  void find_up(PackedExperts<Scalar, gated>& gradients, const BackwardSizes& sizes,
               const RowPiece& piece, Index p) {
    const Scalar* const values =
        d_sums_panels_.data() + piece.at * sizes.sums + p * piece.rows * width;
    add_outer(piece, x_.data(), sizes.d_model, values, gradients.up.panel(piece.expert, p));
    if (gradients.config.biases)
      add_rows(values, piece.rows, row_data(gradients.up_bias, piece.expert) + p * width);
  }

  template <bool gated>
  void find_down(PackedExperts<Scalar, gated>& gradients, const BankBackward<Scalar>& call,
                 const BackwardSizes& sizes, const RowPiece& piece, Index p) {
    const Scalar* const values =
        dy_panels_.data() + piece.at * sizes.filled + p * piece.rows * width;
    add_outer(piece, hidden_.data(), sizes.d_ff, values, gradients.down.panel(piece.expert, p));
    if (!gradients.config.biases) return;
    Scalar* const bias = row_data(gradients.down_bias, piece.expert) + p * width;
    if (gradients.config.down_bias == DownBias::weighted) return add_rows(values, piece.rows, bias);
    for (Index r = 0; r < piece.rows; ++r) {
      const Scalar* const dy = call.dy_row(piece.plan_row(r)) + p * width;
      for (Index i = 0; i < std::min(width, sizes.d_model - p * width); ++i) bias[i] += dy[i];
    }
  }

  /// dw = <dA', A>, and <dy, b> where the weight multiplies the bias, too.
  template <bool gated, class Storage>
  void find_weights(const PackedExperts<Scalar, gated, Storage>& weights,
                    const BankBackward<Scalar>& call, const BackwardSizes& sizes,
                    const RowPiece& piece) {
    const Scalar* const products = products_.data() + piece.at * sizes.up_panels;
    for (Index r = 0; r < piece.rows; ++r) {
      const TokenSlot choice = call.input.plan.rows[static_cast<std::size_t>(piece.plan_row(r))];
      Scalar sum = 0;
      for (Index p = 0; p < sizes.up_panels; ++p) sum += products[p * piece.rows + r];
      if (weights.config.biases && weights.config.down_bias == DownBias::weighted) {
        const Scalar* const bias = weights.down_bias_of(piece.expert, 0);
        const Scalar* const dy = call.dy_row(piece.plan_row(r));
        for (Index d = 0; d < sizes.d_model; ++d) sum += dy[d] * bias[d];
      }
      call.d_weights(choice.token, choice.slot) = sum;
    }
  }

  Index tile_rows_ = 1;
  Index num_threads_ = 1;
  std::vector<RowPiece> pieces_;
  std::vector<Task> tasks_;
  AlignedBuffer<Scalar> dy_;             // (D, rows) by block
  AlignedBuffer<Scalar> dy_panels_;      // w dy, (rows, 32) by panel
  AlignedBuffer<Scalar> x_;              // (rows, tile rows) by columns
  AlignedBuffer<Scalar> hidden_;         // A, the same
  AlignedBuffer<Scalar> d_sums_;         // dZ, (sums, rows) by block
  AlignedBuffer<Scalar> d_sums_panels_;  // dZ, (rows, 32) by panel
  AlignedBuffer<Scalar> products_;       // <dA', A>, (rows) by panel
  AlignedBuffer<Scalar> weight_;         // (rows)
  AlignedBuffer<Scalar> threads_;
};

}  // namespace moe::inline MOE_ABI::detail
