// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the backward pass of a bank works on.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/gather.hpp"

namespace moe::inline MOE_ABI {

/// What a bank's backward is given and what it gives.
///
/// Shapes  input: the forward's; dy (T, D), the gradient with respect to the layer's output, or, if
///         `dy_of_rows`, (N, D), with respect to each row of the bank's; sums, what the forward
///         kept; rows (N, D), where the gradients with respect to the experts' inputs go; weights
///         (T, K), by which the layer multiplied the outputs, or none; d_weights (T, K), where the
///         gradients with respect to them go, for slots that have a row, or none; frozen (E), not 0
///         for experts whose weights get no gradient, or empty.
template <class Scalar>
struct BankBackward {
  const ExpertInput<Scalar>& input;
  MatrixView<const Scalar> dy;
  std::span<const Scalar> sums;
  MatrixView<Scalar> rows;
  MatrixView<const Scalar> weights{};
  MatrixView<Scalar> d_weights{};
  bool dy_of_rows = false;
  bool all_frozen = false;
  std::span<const std::uint8_t> frozen{};

  /// dy of row r of the plan.
  const Scalar* dy_row(Index r) const noexcept {
    return dy.row(dy_of_rows ? r : Index{input.plan.rows[static_cast<std::size_t>(r)].token});
  }
  bool is_frozen(Index expert) const noexcept {
    return all_frozen || (!frozen.empty() && frozen[static_cast<std::size_t>(expert)] != 0);
  }
};

/// What a bank keeps of a forward for its backward. The memory grows only.
template <class Scalar>
class KeptSums {
 public:
  /// Room for so many values, which are undefined.
  std::span<Scalar> resize(std::size_t size) {
    buffer_.grow(size);
    size_ = size;
    return {buffer_.data(), size};
  }
  std::span<const Scalar> values() const noexcept { return {buffer_.data(), size_}; }
  std::size_t size() const noexcept { return size_; }
  /// Values for which there is memory.
  std::size_t capacity() const noexcept { return buffer_.size(); }

 private:
  AlignedBuffer<Scalar> buffer_;
  std::size_t size_ = 0;
};

/// A bank that has a backward pass. Its forward that keeps `sums_size()` values of each row is what
/// a backward needs; `check_backward` throws what `backward` would for these gradients.
template <class B>
concept DifferentiableBank = ExpertBank<B> &&
    requires(const B& bank, const ExpertInput<typename B::Scalar>& input,
             MatrixView<typename B::Scalar> rows, std::span<typename B::Scalar> sums,
             const BankBackward<typename B::Scalar>& call, typename B::Gradients& gradients,
             Scratch& scratch) {
  { bank.gradients() } -> std::same_as<typename B::Gradients>;
  { bank.sums_size() } -> std::convertible_to<Index>;
  { bank.forward(input, rows, sums, scratch) } -> std::same_as<void>;
  { bank.check_backward("", gradients) } -> std::same_as<void>;
  { bank.backward(call, gradients, scratch) } -> std::same_as<void>;
};

namespace detail {

/// Throws ShapeError if what a bank's backward is given does not fit together.
template <class Scalar>
void check_bank_backward(const char* where, const BankBackward<Scalar>& call, Index num_experts,
                         Index d_model, Index sums_size) {
  const DispatchPlan& plan = call.input.plan;
  check_bank_call(where, call.input, call.rows, num_experts, d_model);
  check(!overlap(call.dy, call.rows), where, "rows overlaps dy");
  check_size(where, "dy.rows()", call.dy_of_rows ? plan.num_rows() : plan.tokens, call.dy.rows());
  check_size(where, "dy.cols()", d_model, call.dy.cols());
  check_size(where, "sums.size()", plan.num_rows() * sums_size,
             static_cast<Index>(call.sums.size()));
  const auto check_weights = [&](const char* rows_name, const char* cols_name, const auto& m) {
    if (m.rows() == 0 && m.cols() == 0) return;
    check_size(where, rows_name, plan.tokens, m.rows());
    check_size(where, cols_name, plan.top_k, m.cols());
  };
  check_weights("weights.rows()", "weights.cols()", call.weights);
  check_weights("d_weights.rows()", "d_weights.cols()", call.d_weights);
  if (!call.frozen.empty())
    check_size(where, "frozen.size()", num_experts, static_cast<Index>(call.frozen.size()));
}

/// Sizes of a bank in a backward.
struct BackwardSizes {
  template <class Weights>
  explicit BackwardSizes(const Weights& weights) noexcept
      : d_model(weights.config.d_model),
        d_ff(weights.config.d_ff),
        up_panels(weights.up.panels()),
        down_panels(weights.down.panels()),
        sums(up_panels * kernels::panel_width),
        filled(down_panels * kernels::panel_width),
        hidden_blocks((d_ff + kernels::panel_width - 1) / kernels::panel_width) {}

  Index d_model;
  Index d_ff;
  Index up_panels;
  Index down_panels;
  Index sums;           // of a row, before the activation: whole panels
  Index filled;         // of a row of dy in panels
  Index hidden_blocks;  // of 32 hidden values
};

/// Rows begin .. begin + rows - 1 of an expert, in panels of 32, the last with what is left.
struct RowPiece {
  Index expert;
  Index first_row;  // of the expert in the plan
  Index begin;      // among the expert's rows
  Index rows;
  Index expert_rows;
  Index first_panel;  // panels of the pieces before it in the group

  Index panels() const noexcept { return (rows + kernels::panel_width - 1) / kernels::panel_width; }
  Index panel_rows(Index n) const noexcept {
    return std::min(kernels::panel_width, rows - n * kernels::panel_width);
  }
  /// Rows, with those that fill the panels, of the pieces before it.
  Index at() const noexcept { return first_panel * kernels::panel_width; }
  Index plan_row(Index r) const noexcept { return first_row + begin + r; }
};

/// Cuts a plan's rows into pieces of at most `most_piece`, and calls body(panels) for groups of
/// them, each complete when its panels have room for `most_group` rows or more. Pieces of one
/// expert stand in different groups, so that they add to its gradients one after another.
template <class Body>
void for_each_group(const DispatchPlan& plan, Index most_piece, Index most_group,
                    std::vector<RowPiece>& pieces, const Body& body) {
  Index expert = 0;
  Index begin = 0;
  while (expert < plan.num_experts) {
    pieces.clear();
    Index panels = 0;
    while (expert < plan.num_experts && panels * kernels::panel_width < most_group) {
      const Index left = plan.rows_of(expert) - begin;
      const Index take = std::min(left, most_piece);
      if (take > 0) {
        pieces.push_back(
            {expert, plan.first_row(expert), begin, take, plan.rows_of(expert), panels});
        panels += pieces.back().panels();
      }
      begin += take;
      if (begin < plan.rows_of(expert)) break;
      ++expert;
      begin = 0;
    }
    if (!pieces.empty()) body(panels);
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
