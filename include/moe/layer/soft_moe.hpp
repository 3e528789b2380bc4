// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// SoftMoe: every slot of every expert is a mixture of all tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/routing/linear_map.hpp"
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

/// What a forward of SoftMoe leaves for its backward.
template <class Scalar>
struct SoftMoeTape {
  SoftMoeWorkspace<Scalar> workspace{};
  KeptSums<Scalar> sums{};      // (E p, sums of a row)
  const void* layer = nullptr;  // that filled it; none after a backward
};

/// The gradients of what a SoftMoe has learnt. A backward adds to them.
template <class BankT>
struct SoftMoeGradients {
  using Scalar = typename BankT::Scalar;

  Matrix<Scalar> phi;  // (E p, D)
  Scalar scale = 0;
  typename BankT::Gradients experts;

  void set_zero() {
    phi.setZero();
    scale = 0;
    experts.set_zero();
  }
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
    detail::check_no_unweighted_bias("SoftMoe", experts_);
  }

  Index d_model() const noexcept { return experts_.d_model(); }
  Index num_slots() const noexcept { return weights_.phi.rows(); }
  const SoftMoeWeights<Scalar>& weights() const noexcept { return weights_; }
  SoftMoeWeights<Scalar>& weights() noexcept { return weights_; }
  const BankT& experts() const noexcept { return experts_; }
  BankT& experts() noexcept { return experts_; }

  /// Shapes  x, y (T, D).
  /// Throws  ShapeError if x or y do not fit; std::invalid_argument if y overlaps x.
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
               SoftMoeWorkspace<Scalar>& workspace) const {
    check_views(x, y);
    if (x.rows() == 0) return;
    mix(x, workspace);
    experts_.forward({workspace.slots, workspace.plan}, workspace.outputs, workspace.scratch);
    combine(workspace, y);
  }

  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    SoftMoeWorkspace<Scalar> workspace;
    forward(x, y, workspace);
  }

  /// The same, and fills the tape for a `backward`.
  template <DifferentiableBank B = BankT>
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y, SoftMoeTape<Scalar>& tape) const {
    tape.layer = nullptr;
    check_views(x, y);
    SoftMoeWorkspace<Scalar>& workspace = tape.workspace;
    if (x.rows() == 0) {
      workspace.combine.resize(0, num_slots());
      tape.sums.resize(sums_count());
    } else {
      mix(x, workspace);
      experts_.forward({workspace.slots, workspace.plan}, workspace.outputs,
                       tape.sums.resize(sums_count()), workspace.scratch);
      combine(workspace, y);
    }
    tape.layer = this;
  }

  /// Zeros, to which `backward` adds.
  template <DifferentiableBank B = BankT>
  SoftMoeGradients<BankT> gradients() const {
    return {Matrix<Scalar>::Zero(num_slots(), d_model()), 0, experts_.gradients()};
  }

  /// The reverse of the forward that filled the tape, which serves once: from the gradient with
  /// respect to y to dx and, added, to the gradients of phi, scale and experts.
  ///
  /// Shapes  x as in the forward, dy, dx (T, D).
  /// Throws  std::invalid_argument if no forward of this layer filled the tape, or dx overlaps x or
  ///         dy; ShapeError if a size disagrees.
  template <DifferentiableBank B = BankT>
  void backward(MatrixView<const Scalar> x, SoftMoeTape<Scalar>& tape, MatrixView<const Scalar> dy,
                MatrixView<Scalar> dx, SoftMoeGradients<BankT>& gradients) const {
    constexpr const char* where = "SoftMoe::backward";
    SoftMoeWorkspace<Scalar>& workspace = tape.workspace;
    detail::check(tape.layer == this, where, "the tape is of another layer, or was used");
    detail::check(tape.sums.size() == sums_count(), where,
                  "the layer is not as it was in the forward");
    const Index tokens = workspace.combine.rows();
    detail::check_shape(where, "x.rows()", "x.cols()", x, tokens, d_model());
    detail::check_shape(where, "dy.rows()", "dy.cols()", dy, tokens, d_model());
    detail::check_shape(where, "dx.rows()", "dx.cols()", dx, tokens, d_model());
    detail::check(!detail::overlap(x, dx) && !detail::overlap(dy, dx), where,
                  "dx overlaps x or dy");
    detail::check_shape(where, "gradients.phi.rows()", "gradients.phi.cols()", gradients.phi,
                        num_slots(), d_model());
    experts_.check_backward(where, gradients.experts);
    tape.layer = nullptr;
    if (tokens == 0) return;
    const auto zeros = [](Index rows, Index cols) -> Matrix<Scalar> {
      return Matrix<Scalar>::Zero(rows, cols);
    };
    Matrix<Scalar> d_combine(tokens, num_slots());  // (T, E p)
    detail::LinearMap<Scalar>(workspace.outputs).run(dy, d_combine);
    Matrix<Scalar> d_outputs = zeros(num_slots(), d_model());
    detail::add_transposed_product<Scalar>(workspace.combine, dy, d_outputs);
    Matrix<Scalar> d_slots(num_slots(), d_model());
    const ExpertInput<Scalar> input{workspace.slots, workspace.plan};
    experts_.backward({input, d_outputs, tape.sums.values(), d_slots}, gradients.experts,
                      workspace.scratch);
    Matrix<Scalar> d_logits(tokens, num_slots());  // (T, E p), of dispatch so far
    detail::LinearMap<Scalar>(d_slots).run(x, d_logits);
    for (Index t = 0; t < tokens; ++t) std::fill_n(dx.row(t), d_model(), Scalar(0));
    detail::add_product<Scalar>(workspace.dispatch, d_slots, {}, dx);
    for (Index s = 0; s < num_slots(); ++s) {
      const Scalar mean = workspace.dispatch.col(s).dot(d_logits.col(s));
      d_logits.col(s) = workspace.dispatch.col(s).array() * (d_logits.col(s).array() - mean);
    }
    for (Index t = 0; t < tokens; ++t) {
      const Scalar mean = workspace.combine.row(t).dot(d_combine.row(t));
      d_logits.row(t).array() +=
          workspace.combine.row(t).array() * (d_combine.row(t).array() - mean);
    }
    const Matrix<Scalar> x_unit = normalized(x);
    const Matrix<Scalar> phi_unit = normalized(weights_.phi);
    Matrix<Scalar> d_phi = zeros(num_slots(), d_model());  // of scale phi_unit
    detail::add_transposed_product<Scalar>(d_logits, x_unit, d_phi);
    gradients.scale += d_phi.cwiseProduct(phi_unit).sum();
    add_norm_gradient(weights_.phi, phi_unit, weights_.scale * d_phi, gradients.phi);
    Matrix<Scalar> d_x = zeros(tokens, d_model());
    detail::add_product<Scalar>(d_logits, weights_.scale * phi_unit, {}, d_x);
    add_norm_gradient(x, x_unit, d_x, dx);
  }

 private:
  void check_views(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    constexpr const char* where = "SoftMoe::forward";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "y.rows()", x.rows(), y.rows());
    detail::check_size(where, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), where, "y overlaps x");
  }

  void combine(const SoftMoeWorkspace<Scalar>& workspace, MatrixView<Scalar> y) const {
    for (Index t = 0; t < y.rows(); ++t) std::fill_n(y.row(t), d_model(), Scalar(0));
    detail::add_product<Scalar>(workspace.combine, workspace.outputs, {}, y);
  }

  std::size_t sums_count() const {
    return static_cast<std::size_t>(num_slots() * experts_.sums_size());
  }

  static Scalar norm(MatrixView<const Scalar> m, Index r) {
    return std::sqrt(m.map().row(r).squaredNorm() + least_square);
  }

  /// Of the rows of m divided by their norms, whose part along the row does not count.
  static void add_norm_gradient(MatrixView<const Scalar> m, const Matrix<Scalar>& unit,
                                const Matrix<Scalar>& d_unit, MatrixView<Scalar> d_m) {
    for (Index r = 0; r < m.rows(); ++r)
      d_m.map().row(r) +=
          (d_unit.row(r) - unit.row(r) * unit.row(r).dot(d_unit.row(r))) / norm(m, r);
  }

  static constexpr Scalar least_square = Scalar(1e-6);

  static Matrix<Scalar> normalized(MatrixView<const Scalar> m) {
    Matrix<Scalar> result = m.map();
    for (Index r = 0; r < result.rows(); ++r) result.row(r) /= norm(m, r);
    return result;
  }

  /// All that comes before the experts.
  void mix(MatrixView<const Scalar> x, SoftMoeWorkspace<Scalar>& workspace) const {
    const Matrix<Scalar> phi = weights_.scale * normalized(weights_.phi);
    workspace.logits.resize(x.rows(), num_slots());
    detail::LinearMap<Scalar>(phi).run(normalized(x), workspace.logits);
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
    workspace.slots.setZero(num_slots(), d_model());
    detail::add_transposed_product<Scalar>(workspace.dispatch, x, workspace.slots);
    make_slot_plan(num_slots() / experts_.num_experts(), workspace.plan);
    workspace.outputs.resize(num_slots(), d_model());
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
