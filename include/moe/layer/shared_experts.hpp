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
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

/// y += the sum of all experts of a bank, each on every token, without weights. Made without a
/// bank, it stands for a layer that has none and adds nothing. One expert of width n F equals n of
/// width F.
///
/// Source  Dai et al. (2024), eq. 9, arXiv:2401.06066.
template <ExpertBank BankT>
class SharedExperts {
 public:
  using Scalar = typename BankT::Scalar;

  SharedExperts() = default;
  explicit SharedExperts(BankT bank) : bank_(std::move(bank)) {}

  /// The bank, or nothing where the layer has no shared experts.
  const std::optional<BankT>& bank() const noexcept { return bank_; }

  /// Runs the experts on x (T, D); what they give stays in the workspace.
  void run(MatrixView<const Scalar> x, Workspace<Scalar>& workspace) const {
    if (!bank_) return;
    make_full_plan(x.rows(), bank_->num_experts(), workspace.shared_plan);
    workspace.shared_rows.resize(workspace.shared_plan.num_rows(), bank_->d_model());
    bank_->forward({x, workspace.shared_plan, {}}, workspace.shared_rows, workspace.scratch);
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
          const Scalar* const in = rows.row(e * y.rows() + t);
          for (Index d = 0; d < y.cols(); ++d) out[d] += in[d];
        }
      }
    });
  }

 private:
  std::optional<BankT> bank_;
};

}  // namespace moe::inline MOE_ABI
