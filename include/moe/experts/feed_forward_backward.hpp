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
#include "moe/experts/backward_memory.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/column_product.hpp"
#include "moe/experts/hidden_dropout.hpp"
#include "moe/experts/packed_experts.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a backward. Its memory grows only.
///
/// With A = act(Z), weight w and dA' = dy W_down of a row: dw = <dA', A>, so that no output is
/// needed; dZ = w dA' act'(Z); dx = dZ W_up; dW_down = sum (w dy) A^T, dW_up = sum dZ x^T.
/// All four products are of columns that keep 32 inner values together: the panels of the weights
/// as they lie, for dA' and dx, whose outputs are the rows; and x and A, transposed 32 rows at a
/// time, for the weights' gradients, which add a tile onto the packed gradient where it lies. Sums
/// run over the rows in order, by one task each: the bits do not depend on the number of threads.
///
/// Panels of the transposed weights, made in the cache for products as in the forward, took dA' and
/// dx 2 to 10 % longer with 64 to 256 rows an expert, and as long with 512.
template <class Scalar>
class FeedForwardBackward {
 public:
  template <bool gated, class Storage, class ActivationT>
  void run(const PackedExperts<Scalar, gated, Storage>& weights, const ActivationT& activation,
           const BankBackward<Scalar>& call, PackedExperts<Scalar, gated>& gradients) {
    const BackwardSizes sizes(weights);
    for_each_group(call.input.plan, most_piece_rows, most_group_rows, pieces_, [&](Index panels) {
      run_group(weights, activation, call, gradients, sizes, panels);
    });
  }

 private:
  static constexpr Index most_piece_rows = BackwardMemory<Scalar>::most_piece_rows;
  static constexpr Index most_group_rows = 1024;
  static constexpr Index width = kernels::panel_width;
  static constexpr Index block_size = width * width;
  static constexpr Index most_outer_panels = 4;

  // Of every thread, where they can be had by cutting finer.
  static constexpr Index least_tasks = 4;

  enum class Step { pack, hidden, input, up, down, weight };

  struct Task {
    Step step;
    Index piece;
    Index index;  // of the row panel, the columns or the panels
  };

  template <bool gated, class Storage, class ActivationT>
  void run_group(const PackedExperts<Scalar, gated, Storage>& weights,
                 const ActivationT& activation, const BankBackward<Scalar>& call,
                 PackedExperts<Scalar, gated>& gradients, const BackwardSizes& sizes,
                 Index panels) {
    num_threads_ = parallel::available_threads();
    memory_.grow(sizes, panels, num_threads_);

    tasks_.clear();
    add_tasks(Step::pack, [](const RowPiece& piece) { return piece.panels(); });
    run_tasks([&](const Task& task, int) { pack(call, sizes, piece_of(task), task.index); });
    tasks_.clear();
    add_column_tasks(Step::hidden, sizes.d_ff);
    run_tasks([&](const Task& task, int thread) {
      find_hidden(weights, activation, call, sizes, piece_of(task), task.index, thread);
    });
    tasks_.clear();
    add_column_tasks(Step::input, sizes.d_model);
    const auto pieces = static_cast<Index>(pieces_.size());
    outer_panels_ = most_outer_panels;
    while (outer_panels_ > 1 && pieces * (sizes.up_panels + sizes.down_panels) <
                                    least_tasks * num_threads_ * outer_panels_)
      outer_panels_ /= 2;
    const auto unless_frozen = [&](Index count) {
      return [this, &call, count](const RowPiece& piece) {
        return call.is_frozen(piece.expert) ? Index{0}
                                            : (count + outer_panels_ - 1) / outer_panels_;
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
        find_up(gradients, sizes, piece, task.index * outer_panels_);
      } else if (task.step == Step::down) {
        find_down(gradients, call, sizes, piece, task.index * outer_panels_);
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

  /// Tasks of so many columns each, in whole blocks of 32, that every thread gets some.
  void add_column_tasks(Step step, Index columns) {
    const auto pieces = static_cast<Index>(pieces_.size());
    task_columns_ = ColumnProduct::most_columns;
    while (task_columns_ > 2 * width &&
           pieces * ((columns + task_columns_ - 1) / task_columns_) < least_tasks * num_threads_)
      task_columns_ /= 2;
    add_tasks(step, [&](const RowPiece&) { return (columns + task_columns_ - 1) / task_columns_; });
  }
  ColumnProduct columns_of(Index task, Index columns) const noexcept {
    const Index from = task * task_columns_;
    const Index next = from + task_columns_ * num_threads_;
    return {from, std::min(task_columns_, columns - from), next < columns ? next : -1};
  }

  template <class Body>
  void run_tasks(const Body& body) {
    parallel::for_each_task(static_cast<Index>(tasks_.size()), [&](Index task, int thread) {
      body(tasks_[static_cast<std::size_t>(task)], thread);
    });
  }

  /// Not the zeros behind the columns, which are to stay, whatever the factor.
  static void scale_row(Scalar* row, Index columns, Scalar factor) noexcept {
    if (columns == width) {
      for (Index i = 0; i < width; ++i) row[i] *= factor;
    } else {
      for (Index i = 0; i < columns; ++i) row[i] *= factor;
    }
  }

  /// 32 rows: dy and x by columns, w dy in panels.
  void pack(const BankBackward<Scalar>& call, const BackwardSizes& sizes, const RowPiece& piece,
            Index n) {
    const ExpertInput<Scalar>& input = call.input;
    const auto transpose = kernels::transpose_kernel<Scalar>();
    const Index first = n * width;
    const Index count = piece.panel_rows(n);
    const Scalar* dy[width];
    const Scalar* x[width];
    Scalar weight[width];
    Scalar scale[width];
    for (Index r = 0; r < count; ++r) {
      const Index row = piece.plan_row(first + r);
      const TokenSlot choice = input.plan.rows[static_cast<std::size_t>(row)];
      dy[r] = call.dy_row(row);
      x[r] = input.x.row(choice.token);
      weight[r] = call.weights.empty() ? Scalar(1) : call.weights(choice.token, choice.slot);
      scale[r] = input.factor *
                 (input.scales.empty() ? Scalar(1) : input.scales(choice.token, choice.slot));
    }
    std::copy_n(weight, count, memory_.weights(piece) + first);
    alignas(AlignedBuffer<Scalar>::alignment) Scalar block[block_size] = {};
    for (Index p = 0; p < sizes.down_panels; ++p) {
      const Index from = p * width;
      const Index columns = std::min(width, sizes.d_model - from);
      const auto gather = [&](const Scalar* const* rows, const Scalar* factors, Scalar* to) {
        for (Index r = 0; r < count; ++r) {
          Scalar* const row = to + r * width;
          if (columns == width) {
            std::copy_n(rows[r] + from, width, row);
          } else {
            std::fill(std::copy_n(rows[r] + from, columns, row), row + width, Scalar(0));
          }
          if (factors == nullptr) continue;
          scale_row(row, columns, factors[r]);
        }
      };
      gather(dy, nullptr, block);
      transpose(block, memory_.dy_of(sizes, piece, n) + from * width, width);
      gather(x, scale, block);
      transpose(block, memory_.x_of(sizes, piece, n) + from * kernels::column_stride,
                kernels::column_stride);
      gather(dy, weight, memory_.dy_panels(sizes, piece) + (p * piece.rows + first) * width);
    }
  }

  /// Some hidden values of every row: dA', from it dw's share, dZ, and A again.
  template <bool gated, class Storage, class ActivationT>
  void find_hidden(const PackedExperts<Scalar, gated, Storage>& weights,
                   const ActivationT& activation, const BankBackward<Scalar>& call,
                   const BackwardSizes& sizes, const RowPiece& piece, Index task, int thread) {
    const ColumnProduct work = columns_of(task, sizes.d_ff);
    const auto memory = memory_.of_thread(thread);
    multiply_columns(piece, memory_.dy_of(sizes, piece, 0), sizes.filled * width, sizes.d_model,
                     work, weights.down.panel(piece.expert, 0), weights.down.inner() * width,
                     memory.copy, memory.sums);
    for (Index n = 0; n < piece.panels(); ++n) {
      Scalar* const sums = memory.sums + n * ColumnProduct::most_columns * width;
      for (Index from = 0; from < work.count; from += width) {
        const Index columns = std::min(width, work.count - from);
        std::fill_n(sums + (from + columns) * width, (width - columns) * width, Scalar(0));
        find_hidden_block<gated>(activation, call, sizes, piece, n, work.from + from, memory,
                                 sums + from * width);
      }
    }
  }

  /// The same for 32 of them and 32 rows, of which d_hidden (32 values, 32 rows) is dA'.
  template <bool gated, class ActivationT>
  void find_hidden_block(const ActivationT& activation, const BankBackward<Scalar>& call,
                         const BackwardSizes& sizes, const RowPiece& piece, Index n, Index from,
                         const typename BackwardMemory<Scalar>::OfThread& memory,
                         const Scalar* d_hidden) {
    static_assert(KernelOf<ActivationT>::exists, "the activation has no gradient");
    const auto gradient_of =
        kernels::activation_gradient_kernel<Scalar, KernelOf<ActivationT>::kind, gated>();
    const auto transpose = kernels::transpose_kernel<Scalar>();
    constexpr Index hidden_width = gated ? kernels::gated_width : width;
    const Index first = n * width;
    const Index count = piece.panel_rows(n);
    const bool drops = call.input.dropout.rate > 0;
    transpose(d_hidden, memory.d_hidden, width);
    for (Index r = 0; r < count; ++r) {
      Scalar* const row = memory.d_hidden + r * width;
      scale_row(row, std::min(width, sizes.d_ff - from), memory_.weights(piece)[first + r]);
      if (!drops) continue;
      dropout_factors(call.input.dropout,
                      call.input.plan.rows[static_cast<std::size_t>(piece.plan_row(first + r))],
                      call.input.plan.top_k, sizes.d_ff, from, width, memory.factors + r * width);
      for (Index i = 0; i < width; ++i) row[i] *= memory.factors[r * width + i];
    }
    for (Index at = 0; at < width; at += hidden_width) {
      const Index p = (from + at) / hidden_width;
      if (p >= sizes.up_panels) break;
      const Scalar* const sums =
          call.sums.data() +
          (piece.first_row * sizes.up_panels + p * piece.expert_rows + piece.begin + first) * width;
      Scalar* d_sums = memory_.d_sums_panels(sizes, piece) + (p * piece.rows + first) * width;
      gradient_of(kernel_rule<Scalar>(activation), sums, memory.d_hidden + at, count,
                  memory.hidden + at, d_sums);
      alignas(AlignedBuffer<Scalar>::alignment) Scalar filled[block_size];
      if (count < width) {
        std::fill(std::copy_n(d_sums, count * width, filled), filled + block_size, Scalar(0));
        d_sums = filled;
      }
      transpose(d_sums, memory_.d_sums_of(sizes, piece, n) + p * block_size, width);
    }
    for (Index i = 0; i < count * width && drops; ++i) memory.hidden[i] *= memory.factors[i];
    Scalar* const hidden = memory_.hidden_of(sizes, piece, n) + from * kernels::column_stride;
    transpose(memory.hidden, hidden, kernels::column_stride);
    Scalar products[width] = {};
    for (Index i = 0; i < std::min(width, sizes.d_ff - from); ++i)
      for (Index r = 0; r < width; ++r)
        products[r] += d_hidden[i * width + r] * hidden[i * kernels::column_stride + r];
    std::copy_n(products, count,
                memory_.products(sizes, piece) + (from / width * piece.panels() + n) * width);
  }

  /// Some columns of dx.
  template <bool gated, class Storage>
  void find_input(const PackedExperts<Scalar, gated, Storage>& weights,
                  const BankBackward<Scalar>& call, const BackwardSizes& sizes,
                  const RowPiece& piece, Index task, int thread) {
    const ColumnProduct work = columns_of(task, sizes.d_model);
    const auto memory = memory_.of_thread(thread);
    multiply_columns(piece, memory_.d_sums_of(sizes, piece, 0), sizes.sums * width, sizes.sums,
                     work, weights.up.panel(piece.expert, 0), weights.up.inner() * width,
                     memory.copy, memory.sums);
    const auto transpose = kernels::transpose_kernel<Scalar>();
    for (Index n = 0; n < piece.panels(); ++n) {
      for (Index from = 0; from < work.count; from += width) {
        transpose(memory.sums + (n * ColumnProduct::most_columns + from) * width, memory.hidden,
                  width);
        kernels::row_kernels<Scalar>().finish(
            memory.hidden, nullptr, nullptr, piece.panel_rows(n),
            std::min(width, work.count - from),
            call.rows.row(piece.plan_row(n * width)) + work.from + from, call.rows.row_stride());
      }
    }
  }

  /// Adds sum over the rows of (row's columns)^T (row's 32 values) to each of `count` panels
  /// (columns, 32), `stride` apart.
  static void add_outer(const RowPiece& piece, const Scalar* by_columns, Index rows_stride,
                        Index columns, const Scalar* values, Scalar* panel, Index stride,
                        Index count) {
    const auto& tiles = kernels::column_kernels<Scalar>();
    for (Index first = 0; first < columns; first += tiles.most_columns) {
      const Index tile = std::min<Index>(tiles.most_columns, columns - first);
      for (Index p = 0; p < count; ++p) {
        Scalar* const sums = panel + p * stride + first * width;
        // The gradient that the next tile adds to is asked for meanwhile.
        const Scalar* const next =
            p + 1 < count ? sums + stride : panel + (first + tiles.most_columns) * width;
        const Index bytes = tile * width * static_cast<Index>(sizeof(Scalar));
        const Index step = (bytes + piece.rows - 1) / piece.rows;
        tiles.of_columns[tile - 1](by_columns + first * kernels::column_stride, rows_stride,
                                   values + p * piece.rows * width, piece.rows, sums, true, width,
                                   {reinterpret_cast<const char*>(next), step, step * width});
      }
    }
  }

  static void add_rows(const Scalar* values, Index rows, Scalar* bias) {
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < width; ++i) bias[i] += values[r * width + i];
  }

  template <bool gated>
  void find_up(PackedExperts<Scalar, gated>& gradients, const BackwardSizes& sizes,
               const RowPiece& piece, Index first) {
    const Scalar* const values = memory_.d_sums_panels(sizes, piece) + first * piece.rows * width;
    const Index count = std::min(outer_panels_, sizes.up_panels - first);
    add_outer(piece, memory_.x_of(sizes, piece, 0), memory_.x_stride(sizes), sizes.d_model, values,
              gradients.up.panel(piece.expert, first), gradients.up.inner() * width, count);
    for (Index p = 0; p < count && gradients.config.biases; ++p)
      add_rows(values + p * piece.rows * width, piece.rows,
               row_data(gradients.up_bias, piece.expert) + (first + p) * width);
  }

  template <bool gated>
  void find_down(PackedExperts<Scalar, gated>& gradients, const BankBackward<Scalar>& call,
                 const BackwardSizes& sizes, const RowPiece& piece, Index first) {
    const Scalar* const values = memory_.dy_panels(sizes, piece) + first * piece.rows * width;
    const Index count = std::min(outer_panels_, sizes.down_panels - first);
    add_outer(piece, memory_.hidden_of(sizes, piece, 0), memory_.hidden_stride(sizes), sizes.d_ff,
              values, gradients.down.panel(piece.expert, first), gradients.down.inner() * width,
              count);
    for (Index p = 0; p < count && gradients.config.biases; ++p) {
      const Index from = (first + p) * width;
      Scalar* const bias = row_data(gradients.down_bias, piece.expert) + from;
      if (gradients.config.down_bias == DownBias::weighted) {
        add_rows(values + p * piece.rows * width, piece.rows, bias);
        continue;
      }
      for (Index r = 0; r < piece.rows; ++r) {
        const Scalar* const dy = call.dy_row(piece.plan_row(r)) + from;
        for (Index i = 0; i < std::min(width, sizes.d_model - from); ++i) bias[i] += dy[i];
      }
    }
  }

  /// dw = <dA', A>, and <dy, b> where the weight multiplies the bias, too.
  template <bool gated, class Storage>
  void find_weights(const PackedExperts<Scalar, gated, Storage>& weights,
                    const BankBackward<Scalar>& call, const BackwardSizes& sizes,
                    const RowPiece& piece) {
    const Scalar* const products = memory_.products(sizes, piece);
    for (Index r = 0; r < piece.rows; ++r) {
      const TokenSlot choice = call.input.plan.rows[static_cast<std::size_t>(piece.plan_row(r))];
      Scalar sum = 0;
      for (Index b = 0; b < sizes.hidden_blocks; ++b)
        sum += products[b * piece.panels() * width + r];
      if (weights.config.biases && weights.config.down_bias == DownBias::weighted) {
        const Scalar* const bias = weights.down_bias_of(piece.expert, 0);
        const Scalar* const dy = call.dy_row(piece.plan_row(r));
        for (Index d = 0; d < sizes.d_model; ++d) sum += dy[d] * bias[d];
      }
      call.d_weights(choice.token, choice.slot) = sum;
    }
  }

  Index num_threads_ = 1;
  Index task_columns_ = 1;
  Index outer_panels_ =
      1;  // of a weight's gradient in a task, which read the other factor together
  std::vector<RowPiece> pieces_;
  std::vector<Task> tasks_;
  BackwardMemory<Scalar> memory_;
};

}  // namespace moe::inline MOE_ABI::detail
