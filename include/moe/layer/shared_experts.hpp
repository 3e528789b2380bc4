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
#include "moe/routing/linear_map.hpp"
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
      : bank_(std::move(bank)), gate_(gate) {
    if (gate_.empty()) return;
    detail::check_size("SharedExperts", "gate.rows()", bank_->num_experts(), gate_.outputs());
    detail::check_size("SharedExperts", "gate.cols()", bank_->d_model(), gate_.inner());
  }

  /// The bank, or nothing where the layer has no shared experts.
  const std::optional<BankT>& bank() const noexcept { return bank_; }
  std::optional<BankT>& bank() noexcept { return bank_; }
  bool has_gate() const noexcept { return !gate_.empty(); }
  /// A copy, unpacked.
  Matrix<Scalar> gate() const { return gate_.weight(); }

  /// For a gate that learns.
  ///
  /// Throws  ShapeError unless the gate has the shape of the one that it replaces.
  void set_gate(const Matrix<Scalar>& gate) {
    detail::check_size("SharedExperts::set_gate", "gate.rows()", gate_.outputs(), gate.rows());
    detail::check_size("SharedExperts::set_gate", "gate.cols()", gate_.inner(), gate.cols());
    gate_ = detail::LinearMap<Scalar>(gate);
  }

  /// Runs the experts on x (T, D); what they give stays in the workspace.
  void run(MatrixView<const Scalar> x, Workspace<Scalar>& workspace) const {
    if (!bank_) return;
    prepare(x, workspace);
    bank_->forward({x, workspace.shared_plan}, workspace.shared_rows, workspace.scratch);
  }

  /// Adds to y (T, D) what the last `run` with this workspace gave, expert by expert.
  ///
  /// Throws  ShapeError if y has not the sizes of that run's input.
  void add(const Workspace<Scalar>& workspace, MatrixView<Scalar> y) const {
    if (!bank_) return;
    detail::check_size("SharedExperts::add", "y.rows()", workspace.shared_plan.tokens, y.rows());
    detail::check_size("SharedExperts::add", "y.cols()", workspace.shared_rows.cols(), y.cols());
    parallel::for_each_block(y.rows(), detail::copy_block_rows, [&](Index begin, Index end) {
      for (Index t = begin; t < end; ++t) {
        detail::RowSum<Scalar> sum(y.row(t), y.cols(), true);
        sum.add(y.row(t), 1);
        add_token(workspace, t, sum);
        sum.finish();
      }
    });
  }

  /// The plan, the gates and the room for the rows of a run on x (T, D).
  void prepare(MatrixView<const Scalar> x, Workspace<Scalar>& workspace) const {
    detail::check_size("SharedExperts::run", "x.cols()", bank_->d_model(), x.cols());
    make_full_plan(x.rows(), bank_->num_experts(), workspace.shared_plan);
    workspace.shared_rows.resize(workspace.shared_plan.num_rows(), bank_->d_model());
    if (gate_.empty()) return;
    workspace.shared_gate.resize(x.rows(), gate_.outputs());
    gate_.run(x, workspace.shared_gate);
    Scalar* const gates = workspace.shared_gate.data();
    for (Index i = 0; i < workspace.shared_gate.size(); ++i) gates[i] = sigmoid(gates[i]);
  }

  /// Adds the rows of token t, times their gates.
  void add_token(const Workspace<Scalar>& workspace, Index t, detail::RowSum<Scalar>& sum) const {
    const MatrixView<const Scalar> rows = workspace.shared_rows;
    for (Index e = 0; e < bank_->num_experts(); ++e) {
      sum.add(rows.row(e * workspace.shared_plan.tokens + t),
              !gate_.empty() ? workspace.shared_gate(t, e) : Scalar(1));
      if constexpr (requires { bank_->unweighted_bias(e); }) {
        const Scalar* const bias = bank_->unweighted_bias(e);
        if (bias != nullptr) sum.add(bias, 1);
      }
    }
  }

 private:
  std::optional<BankT> bank_;
  detail::LinearMap<Scalar> gate_;  // (S, D) or empty
};

}  // namespace moe::inline MOE_ABI
