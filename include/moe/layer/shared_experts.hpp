// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Shared experts: experts that every token passes through, beside those that it was routed to.
#pragma once

#include <optional>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/product.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI {

/// y += the sum of all experts of a bank, each on every token; without weights, or each times
/// sigmoid(x . its gate). Made without a bank, it stands for a layer that has none and adds
/// nothing. One ungated expert of width n F equals n of width F.
///
/// Source  Dai et al. (2024), eq. 9, arXiv:2401.06066; with a gate: transformers `qwen2_moe`.
template <ExpertBank BankT>
class SharedExperts {
 public:
  using Scalar = typename BankT::Scalar;

  SharedExperts() = default;

  /// Shapes  gate (S, D) for S experts, or empty.
  /// Throws  ShapeError if the gate has another shape.
  explicit SharedExperts(BankT bank, Matrix<Scalar> gate = {})
      : bank_(std::move(bank)), gate_(std::move(gate)) {
    if (gate_.size() == 0) return;
    detail::check_size("SharedExperts", "gate.rows()", bank_->num_experts(), gate_.rows());
    detail::check_size("SharedExperts", "gate.cols()", bank_->d_model(), gate_.cols());
  }

  /// The bank, or nothing where the layer has no shared experts.
  const std::optional<BankT>& bank() const noexcept { return bank_; }
  const Matrix<Scalar>& gate() const noexcept { return gate_; }

  /// Runs the experts on x (T, D); what they give stays in the workspace.
  void run(MatrixView<const Scalar> x, Workspace<Scalar>& workspace) const {
    if (!bank_) return;
    make_full_plan(x.rows(), bank_->num_experts(), workspace.shared_plan);
    workspace.shared_rows.resize(workspace.shared_plan.num_rows(), bank_->d_model());
    bank_->forward({x, workspace.shared_plan, {}}, workspace.shared_rows, workspace.scratch);
    if (gate_.size() == 0) return;
    workspace.shared_gate.resize(x.rows(), gate_.rows());
    parallel::for_each_block(x.rows(), detail::tile_rows, [&](Index begin, Index end) {
      const Index rows = end - begin;
      const Matrix<Scalar> tile = detail::padded_tile(x.middle_rows(begin, rows), gate_.rows());
      const Matrix<Scalar> logits = detail::padded_product(tile, rows, gate_);
      for (Index t = 0; t < rows; ++t)
        for (Index e = 0; e < gate_.rows(); ++e)
          workspace.shared_gate(begin + t, e) = sigmoid(logits(t, e));
    });
  }

  /// Adds to y (T, D) what the last `run` with this workspace gave, expert by expert.
  ///
  /// Throws  ShapeError if y has not the sizes of that run's input.
  void add(const Workspace<Scalar>& workspace, MatrixView<Scalar> y) const {
    if (!bank_) return;
    const MatrixView<const Scalar> rows = workspace.shared_rows;
    detail::check_size("SharedExperts::add", "y.rows()", workspace.shared_plan.tokens, y.rows());
    detail::check_size("SharedExperts::add", "y.cols()", rows.cols(), y.cols());
    parallel::for_each_block(y.rows(), detail::copy_block_rows, [&](Index begin, Index end) {
      for (Index t = begin; t < end; ++t) {
        Scalar* const out = y.row(t);
        for (Index e = 0; e < bank_->num_experts(); ++e) {
          const Scalar weight = gate_.size() != 0 ? workspace.shared_gate(t, e) : Scalar(1);
          const Scalar* const in = rows.row(e * y.rows() + t);
          for (Index d = 0; d < y.cols(); ++d) out[d] += weight * in[d];
        }
      }
    });
  }

 private:
  std::optional<BankT> bank_;
  Matrix<Scalar> gate_;  // (S, D) or empty
};

}  // namespace moe::inline MOE_ABI
