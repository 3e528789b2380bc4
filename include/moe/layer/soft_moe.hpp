// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// SoftMoe: every slot of every expert is a mixture of all tokens.
#pragma once

#include <cmath>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI {

/// What SoftMoe has learnt beside its experts.
///
/// Shapes  phi (E p, D): slot s belongs to expert s / p.
template <class Scalar>
struct SoftMoeWeights {
  Matrix<Scalar> phi;
  Scalar scale = 1;
};

/// What one forward of SoftMoe writes beside its output. The matrices tell what happened.
template <class Scalar>
struct SoftMoeWorkspace {
  Matrix<Scalar> logits;    // (T, E p)
  Matrix<Scalar> dispatch;  // (T, E p), softmax of the logits over the tokens
  Matrix<Scalar> combine;   // (T, E p), softmax of the logits over the slots
  Matrix<Scalar> slots;     // (E p, D)
  Matrix<Scalar> outputs;   // (E p, D)
  DispatchPlan plan;
  Scratch scratch;
};

/// logits = scale x phi^T, after x and phi are divided by their norms; slots = dispatch^T x; each
/// expert runs on its p slots; y = combine outputs. Nothing is dropped, and no loss is needed. A
/// token's output depends on all tokens of the call, which are one sequence.
///
/// Values  a norm is the root of the sum of squares + 1e-6, so that tokens near 0 have small
///         logits. T = 0 gives nothing.
/// Source  Puigcerver et al. (2023), arXiv:2308.00951; vmoe `projects/soft_moe/router.py`.
/// Differs from the paper's algorithm 2, which adds the epsilon to the norm.
template <ExpertBank BankT>
class SoftMoe {
 public:
  using Scalar = typename BankT::Scalar;

  /// Throws  ShapeError if phi has another width than the experts; std::invalid_argument if its
  ///         slots cannot be shared out evenly.
  SoftMoe(SoftMoeWeights<Scalar> weights, BankT experts)
      : weights_(std::move(weights)), experts_(std::move(experts)) {
    detail::check_size("SoftMoe", "phi.cols()", experts_.d_model(), weights_.phi.cols());
    detail::check(weights_.phi.rows() > 0 && weights_.phi.rows() % experts_.num_experts() == 0,
                  "SoftMoe", "phi.rows() must be a positive multiple of num_experts");
  }

  Index d_model() const noexcept { return experts_.d_model(); }
  Index num_slots() const noexcept { return weights_.phi.rows(); }
  const SoftMoeWeights<Scalar>& weights() const noexcept { return weights_; }
  const BankT& experts() const noexcept { return experts_; }

  /// Shapes  x, y (T, D).
  /// Throws  ShapeError if x or y do not fit; std::invalid_argument if y overlaps x.
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
               SoftMoeWorkspace<Scalar>& workspace) const {
    constexpr const char* where = "SoftMoe::forward";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "y.rows()", x.rows(), y.rows());
    detail::check_size(where, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), where, "y overlaps x");
    if (x.rows() == 0) return;
    mix(x, workspace);
    const Index per_expert = num_slots() / experts_.num_experts();
    make_slot_plan(per_expert, workspace.plan);
    workspace.outputs.resize(num_slots(), d_model());
    experts_.forward({workspace.slots, workspace.plan, {}}, workspace.outputs, workspace.scratch);
    y.map().noalias() = workspace.combine * workspace.outputs;
  }

  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    SoftMoeWorkspace<Scalar> workspace;
    forward(x, y, workspace);
  }

 private:
  static Matrix<Scalar> normalized(MatrixView<const Scalar> m) {
    Matrix<Scalar> result = m.map();
    for (Index r = 0; r < result.rows(); ++r)
      result.row(r) /= std::sqrt(result.row(r).squaredNorm() + Scalar(1e-6));
    return result;
  }

  void mix(MatrixView<const Scalar> x, SoftMoeWorkspace<Scalar>& workspace) const {
    const Matrix<Scalar> phi = weights_.scale * normalized(weights_.phi);
    workspace.logits.noalias() = normalized(x) * phi.transpose();
    workspace.combine = workspace.logits;
    for (Index t = 0; t < x.rows(); ++t) {
      Scalar* const row = detail::row_data(workspace.combine, t);
      softmax(row, num_slots(), row);
    }
    workspace.dispatch.resize(x.rows(), num_slots());
    Vector<Scalar> column(x.rows());  // (T)
    for (Index s = 0; s < num_slots(); ++s) {
      column = workspace.logits.col(s);
      softmax(column.data(), column.size(), column.data());
      workspace.dispatch.col(s) = column;
    }
    workspace.slots.noalias() = workspace.dispatch.transpose() * x.map();
  }

  /// The slots as tokens of one choice each.
  void make_slot_plan(Index per_expert, DispatchPlan& plan) const {
    plan.tokens = num_slots();
    plan.top_k = 1;
    plan.num_experts = experts_.num_experts();
    plan.first_expert = 0;
    plan.dropped.clear();
    plan.offsets.resize(static_cast<std::size_t>(plan.num_experts) + 1);
    for (Index e = 0; e <= plan.num_experts; ++e)
      plan.offsets[static_cast<std::size_t>(e)] = e * per_expert;
    plan.rows.resize(static_cast<std::size_t>(num_slots()));
    plan.row_of.resize(plan.rows.size());
    for (std::size_t s = 0; s < plan.rows.size(); ++s) {
      plan.rows[s] = {static_cast<std::int32_t>(s), 0};
      plan.row_of[s] = static_cast<std::int32_t>(s);
    }
  }

  SoftMoeWeights<Scalar> weights_;
  BankT experts_;
};

}  // namespace moe::inline MOE_ABI
