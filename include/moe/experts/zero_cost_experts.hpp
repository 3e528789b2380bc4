// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// ZeroCostExperts: experts without a matrix product beside those of a bank.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/gather.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// What an expert without a matrix product gives for a token x.
enum class ZeroCostKind {
  zero,      ///< 0
  identity,  ///< x; also called copy
  constant,  ///< a_1 x + a_2 v, (a_1, a_2) = softmax(M x), with v and M learnt
};

/// One such expert.
///
/// Shapes  for a constant: mix (2, D), value (D); else empty.
template <class Scalar>
struct ZeroCostExpert {
  ZeroCostKind kind = ZeroCostKind::identity;
  Matrix<Scalar> mix{};
  Vector<Scalar> value{};
};

/// The gradients of a bank of experts and of the constant experts behind it. A backward adds to
/// them.
template <class BankGradients>
struct ZeroCostGradients {
  using Scalar = typename BankGradients::Scalar;

  BankGradients bank;
  std::vector<ZeroCostExpert<Scalar>> others;  // mix and value of the constant ones

  void set_zero() {
    bank.set_zero();
    for (ZeroCostExpert<Scalar>& other : others) {
      other.mix.setZero();
      other.value.setZero();
    }
  }
};

namespace detail {

/// What stands for the gradients of a bank that has none.
template <class BankT>
struct ZeroCostGradientsOf {
  using Type = void;
};
template <DifferentiableBank BankT>
struct ZeroCostGradientsOf<BankT> {
  using Type = ZeroCostGradients<typename BankT::Gradients>;
};

}  // namespace detail

/// The experts of a bank, then zero-cost ones.
///
/// Source  Jin et al. (2024), arXiv:2410.07348 (zero, copy, constant); Meituan (2025),
///         arXiv:2509.01322 (identity).
template <ExpertBank BankT>
class ZeroCostExperts {
 public:
  using Scalar = typename BankT::Scalar;

  /// Throws  ShapeError if a constant expert's parts have other sizes.
  ZeroCostExperts(BankT bank, std::vector<ZeroCostExpert<Scalar>> others)
      : bank_(std::move(bank)), others_(std::move(others)) {
    for (const ZeroCostExpert<Scalar>& other : others_) {
      const bool is_constant = other.kind == ZeroCostKind::constant;
      detail::check_size("ZeroCostExperts", "mix.rows()", is_constant ? 2 : 0, other.mix.rows());
      detail::check_size("ZeroCostExperts", "mix.cols()", is_constant ? d_model() : 0,
                         other.mix.cols());
      detail::check_size("ZeroCostExperts", "value.size()", is_constant ? d_model() : 0,
                         other.value.size());
    }
  }

  Index d_model() const noexcept { return bank_.d_model(); }
  Index num_experts() const noexcept {
    return bank_.num_experts() + static_cast<Index>(others_.size());
  }
  const BankT& bank() const noexcept { return bank_; }
  BankT& bank() noexcept { return bank_; }
  const std::vector<ZeroCostExpert<Scalar>>& others() const noexcept { return others_; }
  std::vector<ZeroCostExpert<Scalar>>& others() noexcept { return others_; }

  /// Shapes  input.x (T, D), rows (N, D).
  /// Cost    the bank's, and D operations for each row of the others (4 D for a constant).
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const {
    detail::check_bank_call("ZeroCostExperts::forward", input, rows, num_experts(), d_model());
    const DispatchPlan& part = plan_of_bank(input.plan, scratch);
    bank_.forward(part_of(input, part), rows.middle_rows(0, part.num_rows()), scratch);
    run_others(input, rows);
  }

  using Gradients = typename detail::ZeroCostGradientsOf<BankT>::Type;

  /// The same, and keeps what `backward` needs: the bank's values before the activation.
  ///
  /// Shapes  sums (N, sums_size()), of which the bank's rows are used.
  template <DifferentiableBank B = BankT>
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, std::span<Scalar> sums,
               Scratch& scratch) const {
    constexpr const char* where = "ZeroCostExperts::forward";
    detail::check_bank_call(where, input, rows, num_experts(), d_model());
    detail::check_size(where, "sums.size()", input.plan.num_rows() * sums_size(),
                       static_cast<Index>(sums.size()));
    const DispatchPlan& part = plan_of_bank(input.plan, scratch);
    bank_.forward(part_of(input, part), rows.middle_rows(0, part.num_rows()),
                  sums.first(static_cast<std::size_t>(part.num_rows() * sums_size())), scratch);
    run_others(input, rows);
  }

  template <DifferentiableBank B = BankT>
  Index sums_size() const noexcept {
    return bank_.sums_size();
  }

  /// Zeros, to which `backward` adds.
  template <DifferentiableBank B = BankT>
  auto gradients() const {
    ZeroCostGradients<typename B::Gradients> result{bank_.gradients(), others_};
    for (ZeroCostExpert<Scalar>& other : result.others) {
      other.mix.setZero();
      other.value.setZero();
    }
    return result;
  }

  /// Throws  what `backward` would for these gradients, beginning with `where`.
  template <DifferentiableBank B = BankT>
  void check_backward(const char* where,
                      const ZeroCostGradients<typename B::Gradients>& gradients) const {
    bank_.check_backward(where, gradients.bank);
    detail::check_size(where, "gradients.others.size()", static_cast<Index>(others_.size()),
                       static_cast<Index>(gradients.others.size()));
    for (std::size_t i = 0; i < others_.size(); ++i) {
      detail::check_shape(where, "gradients' mix.rows()", "gradients' mix.cols()",
                          gradients.others[i].mix, others_[i].mix.rows(), others_[i].mix.cols());
      detail::check_size(where, "gradients' value.size()", others_[i].value.size(),
                         gradients.others[i].value.size());
    }
  }

  /// The reverse of a forward, as of the bank.
  ///
  /// Shapes  as BankBackward says.
  /// Throws  ShapeError if a size disagrees.
  template <DifferentiableBank B = BankT>
  void backward(const BankBackward<Scalar>& call,
                ZeroCostGradients<typename B::Gradients>& gradients, Scratch& scratch) const {
    constexpr const char* where = "ZeroCostExperts::backward";
    check_backward(where, gradients);
    detail::check_bank_backward(where, call, num_experts(), d_model(), sums_size());
    const DispatchPlan& part = plan_of_bank(call.input.plan, scratch);
    const ExpertInput<Scalar> input = part_of(call.input, part);
    const Index rows = part.num_rows();
    BankBackward<Scalar> of_bank{
        .input = input,
        .dy = call.dy_of_rows ? call.dy.middle_rows(0, rows) : call.dy,
        .sums = call.sums.first(static_cast<std::size_t>(rows * sums_size())),
        .rows = call.rows.middle_rows(0, rows),
        .weights = call.weights,
        .d_weights = call.d_weights,
        .dy_of_rows = call.dy_of_rows,
        .all_frozen = call.all_frozen};
    if (!call.frozen.empty())
      of_bank.frozen = call.frozen.first(static_cast<std::size_t>(bank_.num_experts()));
    bank_.backward(of_bank, gradients.bank, scratch);
    parallel::for_each_task(static_cast<Index>(others_.size()), [&](Index i, int /*thread*/) {
      const Index e = bank_.num_experts() + i;
      Vector<Scalar> x(d_model());
      for (Index r = call.input.plan.first_row(e); r < call.input.plan.first_row(e + 1); ++r) {
        detail::gather_rows(call.input, r, MatrixView<Scalar>(x.data(), 1, d_model()));
        go_back(others_[static_cast<std::size_t>(i)], call, r, x,
                call.is_frozen(e) ? nullptr : &gradients.others[static_cast<std::size_t>(i)]);
      }
    });
  }

  /// The down bias (D) of an expert of the bank, if no weight is to multiply it, else null.
  const Scalar* unweighted_bias(Index e) const noexcept {
    if constexpr (requires { bank_.unweighted_bias(e); }) {
      if (e < bank_.num_experts()) return bank_.unweighted_bias(e);
    }
    return nullptr;
  }

 private:
  /// The plan of the bank alone, whose experts and rows come first.
  const DispatchPlan& plan_of_bank(const DispatchPlan& plan, Scratch& scratch) const {
    struct Part {
      DispatchPlan plan;
    };
    DispatchPlan& part = scratch.kept<Part>().plan;
    detail::restrict_plan(plan, 0, bank_.num_experts(), part);
    return part;
  }

  static ExpertInput<Scalar> part_of(const ExpertInput<Scalar>& input, const DispatchPlan& plan) {
    return {input.x, plan, input.scales, input.factor, input.dropout};
  }

  void run_others(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows) const {
    for (std::size_t i = 0; i < others_.size(); ++i) {
      const Index e = bank_.num_experts() + static_cast<Index>(i);
      const Index first = input.plan.first_row(e);
      parallel::for_each_block(input.plan.rows_of(e), 32, [&](Index begin, Index end) {
        detail::gather_rows(input, first + begin, rows.middle_rows(first + begin, end - begin));
        for (Index r = first + begin; r < first + end; ++r) apply(others_[i], rows.row(r));
      });
    }
  }

  /// Shares of a constant expert: of its input and of its value.
  std::array<Scalar, 2> shares_of(const ZeroCostExpert<Scalar>& expert, const Scalar* x) const {
    Scalar z[2] = {0, 0};
    for (Index i = 0; i < 2; ++i)
      for (Index d = 0; d < d_model(); ++d) z[i] += expert.mix(i, d) * x[d];
    // softmax of two, without overflow
    return {1 / (1 + std::exp(z[1] - z[0])), 1 / (1 + std::exp(z[0] - z[1]))};
  }

  /// One row of one expert: dx to call.rows, the weight's gradient, and those of a constant unless
  /// there is nowhere to add them.
  void go_back(const ZeroCostExpert<Scalar>& expert, const BankBackward<Scalar>& call, Index r,
               const Vector<Scalar>& x, ZeroCostExpert<Scalar>* gradient) const {
    const TokenSlot choice = call.input.plan.rows[static_cast<std::size_t>(r)];
    const Scalar* const dy = call.dy_row(r);
    const Scalar weight =
        call.weights.empty() ? Scalar(1) : call.weights(choice.token, choice.slot);
    Scalar of_x = expert.kind == ZeroCostKind::zero ? Scalar(0) : Scalar(1);
    Scalar by_x = 0;      // <dy, x>
    Scalar by_value = 0;  // <dy, value>
    for (Index d = 0; d < d_model(); ++d) by_x += dy[d] * x[d];
    Scalar of_value = 0;
    Scalar slope = 0;  // of the first logit, the second's is its negative
    if (expert.kind == ZeroCostKind::constant) {
      const std::array<Scalar, 2> shares = shares_of(expert, x.data());
      of_x = shares[0];
      of_value = shares[1];
      for (Index d = 0; d < d_model(); ++d) by_value += dy[d] * expert.value[d];
      slope = weight * of_x * of_value * (by_x - by_value);
    }
    if (!call.d_weights.empty())
      call.d_weights(choice.token, choice.slot) = of_x * by_x + of_value * by_value;
    Scalar* const dx = call.rows.row(r);
    for (Index d = 0; d < d_model(); ++d) dx[d] = weight * of_x * dy[d];
    if (expert.kind != ZeroCostKind::constant) return;
    for (Index d = 0; d < d_model(); ++d) {
      dx[d] += slope * (expert.mix(0, d) - expert.mix(1, d));
      if (gradient == nullptr) continue;
      gradient->mix(0, d) += slope * x[d];
      gradient->mix(1, d) -= slope * x[d];
      gradient->value[d] += weight * of_value * dy[d];
    }
  }

  void apply(const ZeroCostExpert<Scalar>& expert, Scalar* x) const {
    if (expert.kind == ZeroCostKind::identity) return;
    if (expert.kind == ZeroCostKind::zero) {
      std::fill_n(x, d_model(), Scalar(0));
      return;
    }
    const std::array<Scalar, 2> shares = shares_of(expert, x);
    const Scalar* const terms[] = {x, expert.value.data()};
    kernels::row_kernels<Scalar>().weighted_sum(terms, shares.data(), 2, d_model(), x);
  }

  BankT bank_;
  std::vector<ZeroCostExpert<Scalar>> others_;
};

}  // namespace moe::inline MOE_ABI
