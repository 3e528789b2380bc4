// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// CustomExperts: a bank made of a user's own experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/gather.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// Runs each expert once, on all of its rows together. Experts without rows are not called.
template <Expert ExpertT>
class CustomExperts {
 public:
  using Scalar = typename ExpertT::Scalar;

  /// Throws  std::invalid_argument if there is no expert; ShapeError if their widths differ.
  explicit CustomExperts(std::vector<ExpertT> experts) : experts_(std::move(experts)) {
    detail::check(!experts_.empty(), "CustomExperts", "at least one expert is needed");
    detail::check(d_model() > 0, "CustomExperts", "d_model must be positive");
    for (const ExpertT& expert : experts_)
      detail::check_size("CustomExperts", "expert.d_model()", d_model(), expert.d_model());
  }

  Index num_experts() const noexcept { return static_cast<Index>(experts_.size()); }
  Index d_model() const noexcept { return experts_.front().d_model(); }
  const ExpertT& expert(Index e) const { return experts_.at(static_cast<std::size_t>(e)); }
  ExpertT& expert(Index e) { return experts_.at(static_cast<std::size_t>(e)); }

  /// Shapes  input.x (T, D), rows (N, D).
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other; whatever an expert
  ///         throws.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const {
    detail::check_bank_call("CustomExperts::forward", input, rows, num_experts(), d_model());
    auto& order = scratch.kept<Order>().experts;
    order.clear();
    order.reserve(experts_.size());
    for (Index e = 0; e < num_experts(); ++e)
      if (input.plan.rows_of(e) > 0) order.push_back(e);
    if (order.empty()) return;
    std::sort(order.begin(), order.end(), [&](Index a, Index b) {
      const Index more = input.plan.rows_of(a) - input.plan.rows_of(b);
      return more != 0 ? more > 0 : a < b;
    });
    // As much for any routing: of distinct experts, none has more rows than there are tokens.
    const Index most = std::max(input.plan.rows_of(order.front()), input.plan.tokens);
    scratch.reserve(parallel::available_threads(),
                    static_cast<std::size_t>(most * d_model()) * sizeof(Scalar));
    parallel::for_each_task(static_cast<Index>(order.size()), [&](Index task, int thread) {
      const Index e = order[static_cast<std::size_t>(task)];
      const Index first = input.plan.first_row(e);
      const Index count = input.plan.rows_of(e);
      auto* const gathered = scratch.template of_thread<Scalar>(thread);
      detail::gather_rows(input, first, MatrixView<Scalar>(gathered, count, d_model()));
      experts_[static_cast<std::size_t>(e)].forward(
          MatrixView<const Scalar>(gathered, count, d_model()), rows.middle_rows(first, count));
    });
  }

 private:
  /// The experts of a call that have rows, largest first.
  struct Order {
    std::vector<Index> experts;
  };

  std::vector<ExpertT> experts_;
};

}  // namespace moe::inline MOE_ABI
