// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Collecting the rows of an expert.
#pragma once

#include <algorithm>
#include <type_traits>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI::detail {

/// Copies plan rows first .. first + out.rows() - 1 of the input to `out` (count, D), each
/// times its scale where it has one.
template <class Scalar>
void gather_rows(const ExpertInput<Scalar>& input, Index first, MatrixView<Scalar> out) {
  const Index d_model = input.x.cols();
  for (Index r = 0; r < out.rows(); ++r) {
    const TokenSlot choice = input.plan.rows[static_cast<std::size_t>(first + r)];
    const Scalar* const from = input.x.row(choice.token);
    Scalar* const to = out.row(r);
    if (input.scales.empty() && input.factor == 1) {
      std::copy_n(from, d_model, to);
    } else {
      const Scalar scale =
          input.factor * (input.scales.empty() ? 1 : input.scales(choice.token, choice.slot));
      for (Index d = 0; d < d_model; ++d) to[d] = scale * from[d];
    }
  }
}

/// Throws ShapeError unless the input and `rows` fit each other and a bank of E experts of width D;
/// std::invalid_argument if the plan leads outside of them or `rows` overlaps the input.
template <class Scalar>
void check_bank_call(const char* where, const ExpertInput<Scalar>& input,
                     std::type_identity_t<MatrixView<Scalar>> rows, Index num_experts,
                     Index d_model) {
  check_plan(where, input.plan);
  check_size(where, "input.x.cols()", d_model, input.x.cols());
  check_size(where, "input.x.rows()", input.plan.tokens, input.x.rows());
  check_size(where, "input.plan.num_experts", num_experts, input.plan.num_experts);
  check_size(where, "rows.rows()", input.plan.num_rows(), rows.rows());
  check_size(where, "rows.cols()", d_model, rows.cols());
  if (!input.scales.empty()) {
    check_size(where, "input.scales.rows()", input.plan.tokens, input.scales.rows());
    check_size(where, "input.scales.cols()", input.plan.top_k, input.scales.cols());
  }
  check(input.dropout.rate >= 0 && input.dropout.rate < 1, where,
        "input.dropout.rate must be at least 0 and below 1");
  check(!overlap(input.x, rows) && !overlap(input.scales, rows), where, "rows overlaps the input");
}

/// Adds to tokens first .. first + y.rows() - 1 what the routing weights must not multiply: the
/// down biases of the experts that ran, where the bank has such.
///
/// Shapes  y (count, D).
template <class BankT, class Scalar>
void add_unweighted(const BankT& bank, const Routing<Scalar>& routing, const DispatchPlan& plan,
                    Index first, std::type_identity_t<MatrixView<Scalar>> y) {
  if constexpr (requires { bank.unweighted_bias(Index{0}); }) {
    if (bank.unweighted_bias(0) == nullptr) return;
    for (Index t = 0; t < y.rows(); ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        if (plan.row_of[static_cast<std::size_t>((first + t) * plan.top_k + k)] ==
            DispatchPlan::no_row)
          continue;
        const Index expert = routing.experts(first + t, k) - plan.first_expert;
        if (expert < 0 || expert >= bank.num_experts()) continue;  // Of another bank.
        const Scalar* const bias = bank.unweighted_bias(expert);
        for (Index d = 0; d < y.cols() && bias != nullptr; ++d) y(t, d) += bias[d];
      }
    }
  }
}

}  // namespace moe::inline MOE_ABI::detail
