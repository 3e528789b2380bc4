// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// dispatch and combine: the two ends of the expert stage, for hosts that bring their own experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// Rows that one task of dispatch or combine handles.
inline constexpr Index copy_block_rows = 8;

/// The weighted sum of any number of rows, in the order in which they are added.
template <class Scalar>
class RowSum {
 public:
  /// Writes `out` (n). Without `weighted`, the rows are added as they are.
  RowSum(Scalar* out, Index n, bool weighted) noexcept : out_(out), n_(n), weighted_(weighted) {}

  void add(const Scalar* row, Scalar weight) {
    if (count_ == most) {  // Goes on from what is summed up.
      finish();
      rows_[0] = out_;
      weight_[0] = 1;
      count_ = 1;
    }
    rows_[count_] = row;
    weight_[count_++] = weight;
  }

  void finish() const {
    kernels::row_kernels<Scalar>().weighted_sum(rows_, weighted_ ? weight_ : nullptr, count_, n_,
                                                out_);
  }

 private:
  static constexpr Index most = 32;
  Scalar* out_;
  Index n_;
  bool weighted_;
  Index count_ = 0;
  const Scalar* rows_[most];
  Scalar weight_[most];
};

/// Adds the rows of token t, in order of its slots.
template <class Scalar>
void add_token(MatrixView<const Scalar> rows, const DispatchPlan& plan,
               MatrixView<const Scalar> weights, Index t, RowSum<Scalar>& sum) {
  for (Index k = 0; k < plan.top_k; ++k) {
    const Index row = plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)];
    if (row != DispatchPlan::no_row)
      sum.add(rows.row(row), weights.empty() ? Scalar(1) : weights(t, k));
  }
}

/// Throws std::invalid_argument if a bank has biases that no weight is to multiply, which a layer
/// without a place for them would lose.
template <class BankT>
void check_no_unweighted_bias(const char* where, const BankT& bank) {
  if constexpr (requires { bank.unweighted_bias(Index{0}); })
    check(bank.unweighted_bias(0) == nullptr, where,
          "there is no place for down biases without a weight");
}

}  // namespace detail

/// Gathers the rows of every expert: rows[r] = x[plan.rows[r].token].
///
/// Shapes  x (T, D), rows (N, D).
/// Cost    copies N D values, parallel over rows.
/// Throws  ShapeError if the sizes do not fit; std::invalid_argument if rows overlaps x.
template <class Scalar>
void dispatch(std::type_identity_t<MatrixView<const Scalar>> x, const DispatchPlan& plan,
              MatrixView<Scalar> rows) {
  constexpr const char* where = "dispatch";
  detail::check_plan(where, plan);
  detail::check_size(where, "x.rows()", plan.tokens, x.rows());
  detail::check_size(where, "rows.rows()", plan.num_rows(), rows.rows());
  detail::check_size(where, "rows.cols()", x.cols(), rows.cols());
  detail::check(!detail::overlap(x, rows), where, "rows overlaps x");
  parallel::for_each_block(plan.num_rows(), detail::copy_block_rows, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      std::copy_n(x.row(plan.rows[static_cast<std::size_t>(r)].token), x.cols(), rows.row(r));
  });
}

/// The weighted sum of every token's expert rows: y[t] = sum over k of weights(t, k) rows[row of
/// k]. Slots without a row (dropped, or of another range of experts) add nothing, so a token
/// without any gets zeros.
///
/// Shapes  rows (N, D), weights (T, K) or empty for weights of 1, y (T, D).
/// Values  summed in order of the slots, whatever the number of threads.
/// Cost    2 N D flop, parallel over tokens.
/// Throws  ShapeError if the sizes do not fit; std::invalid_argument if y overlaps an input.
template <class Scalar>
void combine(std::type_identity_t<MatrixView<const Scalar>> rows, const DispatchPlan& plan,
             std::type_identity_t<MatrixView<const Scalar>> weights, MatrixView<Scalar> y) {
  constexpr const char* where = "combine";
  detail::check_plan(where, plan);
  detail::check_size(where, "rows.rows()", plan.num_rows(), rows.rows());
  detail::check_size(where, "y.rows()", plan.tokens, y.rows());
  detail::check_size(where, "y.cols()", rows.cols(), y.cols());
  if (!weights.empty()) {
    detail::check_size(where, "weights.rows()", plan.tokens, weights.rows());
    detail::check_size(where, "weights.cols()", plan.top_k, weights.cols());
  }
  detail::check(!detail::overlap(rows, y), where, "y overlaps rows");
  detail::check(!detail::overlap(weights, y), where, "y overlaps weights");
  parallel::for_each_block(plan.tokens, detail::copy_block_rows, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      detail::RowSum<Scalar> sum(y.row(t), y.cols(), !weights.empty());
      detail::add_token(rows, plan, weights, t, sum);
      sum.finish();
    }
  });
}

}  // namespace moe::inline MOE_ABI
