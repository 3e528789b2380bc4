// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// ZeroCostExperts: experts without a matrix product beside those of a bank.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
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
  const std::vector<ZeroCostExpert<Scalar>>& others() const noexcept { return others_; }

  /// Shapes  input.x (T, D), rows (N, D).
  /// Cost    the bank's, and D operations for each row of the others (4 D for a constant).
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const {
    detail::check_bank_call("ZeroCostExperts::forward", input, rows, num_experts(), d_model());
    struct Part {
      DispatchPlan plan;
    };
    DispatchPlan& part = scratch.kept<Part>().plan;
    detail::restrict_plan(input.plan, 0, bank_.num_experts(), part);
    bank_.forward({input.x, part, input.scales, input.factor, input.dropout},
                  rows.middle_rows(0, part.num_rows()), scratch);
    for (std::size_t i = 0; i < others_.size(); ++i) {
      const Index e = bank_.num_experts() + static_cast<Index>(i);
      const Index first = input.plan.first_row(e);
      parallel::for_each_block(input.plan.rows_of(e), 32, [&](Index begin, Index end) {
        detail::gather_rows(input, first + begin, rows.middle_rows(first + begin, end - begin));
        for (Index r = first + begin; r < first + end; ++r) apply(others_[i], rows.row(r));
      });
    }
  }

  /// What the bank adds beside the routing weights.
  void add_unweighted(const Routing<Scalar>& routing, const DispatchPlan& plan, Index first,
                      MatrixView<Scalar> y) const {
    if constexpr (requires { bank_.add_unweighted(routing, plan, first, y); })
      bank_.add_unweighted(routing, plan, first, y);
  }

 private:
  void apply(const ZeroCostExpert<Scalar>& expert, Scalar* x) const {
    if (expert.kind == ZeroCostKind::identity) return;
    if (expert.kind == ZeroCostKind::zero) {
      std::fill_n(x, d_model(), Scalar(0));
      return;
    }
    Scalar z[2] = {0, 0};
    for (Index i = 0; i < 2; ++i)
      for (Index d = 0; d < d_model(); ++d) z[i] += expert.mix(i, d) * x[d];
    // softmax of two, without overflow
    const Scalar of_x = 1 / (1 + std::exp(z[1] - z[0]));
    const Scalar of_value = 1 / (1 + std::exp(z[0] - z[1]));
    const Scalar* const terms[] = {x, expert.value.data()};
    const Scalar shares[] = {of_x, of_value};
    kernels::row_kernels<Scalar>().weighted_sum(terms, shares, 2, d_model(), x);
  }

  BankT bank_;
  std::vector<ZeroCostExpert<Scalar>> others_;
};

}  // namespace moe::inline MOE_ABI
