// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From a plan to a layer's output.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/gather.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/tape.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/drops.hpp"

namespace moe::inline MOE_ABI::detail {

/// Room on the tape for what a bank's backward needs of a forward on `plan`; none without a tape,
/// or where it is to be recomputed.
template <class BankT, class Scalar = typename BankT::Scalar>
std::span<Scalar> room_for_sums(Tape<Scalar>* tape, KeptSums<Scalar> Tape<Scalar>::*kept,
                                const BankT& bank, const DispatchPlan& plan) {
  if constexpr (DifferentiableBank<BankT>) {
    if (tape == nullptr) return {};
    const bool keeps = tape->policy != TapePolicy::recompute;
    return (tape->*kept)
        .resize(keeps ? static_cast<std::size_t>(plan.num_rows() * bank.sums_size()) : 0);
  } else {
    return {};
  }
}

/// Runs a bank that is no part of a stage.
template <class BankT, class Scalar = typename BankT::Scalar>
void run_bank(const BankT& bank, const ExpertInput<Scalar>& input,
              std::type_identity_t<MatrixView<Scalar>> rows, std::span<Scalar> sums,
              Scratch& scratch) {
  if constexpr (DifferentiableBank<BankT>) {
    if (!sums.empty()) return bank.forward(input, rows, sums, scratch);
  }
  bank.forward(input, rows, scratch);
}

/// Runs experts on a plan and adds up their results; what a backward needs goes to the tape, if
/// there is one.
///
/// Throws  what the banks do, and std::invalid_argument, beginning with `where`, if they lack what
///         the tape asks for.
template <class BankT, class SharedBankT, class Scalar = typename BankT::Scalar>
void run_layer(const char* where, const BankT& experts, const SharedExperts<SharedBankT>& shared,
               const Vector<Scalar>& output_bias, bool keeps_all_choices,
               std::type_identity_t<MatrixView<const Scalar>> x, const Routing<Scalar>& routing,
               const DispatchPlan& plan, std::type_identity_t<MatrixView<Scalar>> y,
               Workspace<Scalar>& workspace, Tape<Scalar>* tape) {
  const Index d_model = experts.d_model();
  const bool keeps_rows = tape != nullptr && tape->policy == TapePolicy::keep_all;
  GrowingMatrix<Scalar>& rows = keeps_rows ? tape->outputs : workspace.rows;
  rows.reserve(static_cast<Index>(plan.row_of.size()) * d_model);
  rows.resize(plan.num_rows(), d_model);
  const bool on_input = routing.weight_target == WeightTarget::input;
  MatrixView<const Scalar> weights = routing.weights;
  if (!keeps_all_choices) workspace.weights.reserve(routing.weights.size());
  if (!plan.dropped.empty() || routing.renormalization.after_drop) {
    final_weights(routing, plan, workspace.weights);
    weights = workspace.weights;
  }
  const MatrixView<const Scalar> none;
  const ExpertInput<Scalar> input{x, plan, on_input ? weights : none,
                                  static_cast<Scalar>(routing.input_scale),
                                  tape == nullptr ? HiddenDropout{} : tape->dropout};
  MatrixView<const Scalar> left = on_input ? none : weights;  // What combine multiplies by.
  check_bank_call<Scalar>(where, input, rows, experts.num_experts(), d_model);
  const auto* const staged = staged_bank(experts);
  const auto* const staged_shared = shared.bank() ? staged_bank(*shared.bank()) : nullptr;
  const HiddenDropout shared_dropout = tape == nullptr ? HiddenDropout{} : tape->shared_dropout;
  check((staged != nullptr || input.dropout.rate == 0) &&
            (staged_shared != nullptr || !shared.bank() || shared_dropout.rate == 0),
        where, "only banks of feed-forward experts have hidden dropout");
  const std::span<Scalar> sums = room_for_sums(tape, &Tape<Scalar>::sums, experts, plan);
  if (tape != nullptr) tape->shared_sums.resize(0);
  std::span<Scalar> shared_sums;
  if (shared.bank()) {
    shared.prepare(x, workspace);
    shared_sums =
        room_for_sums(tape, &Tape<Scalar>::shared_sums, *shared.bank(), workspace.shared_plan);
  }
  const ExpertInput<Scalar> shared_input{x, workspace.shared_plan, {}, 1, shared_dropout};
  // Banks that are no part of the stage come first: they may hold others, which have a stage too.
  if constexpr (requires { experts.forward_weighted(input, rows, left, workspace.scratch); }) {
    if (staged == nullptr) {  // With the bits that the bank has as a part of a stage.
      experts.forward_weighted(input, rows, left, workspace.scratch);
      left = none;
    }
  } else if (staged == nullptr) {
    run_bank(experts, input, rows, sums, workspace.scratch);
  }
  if (shared.bank() && staged_shared == nullptr)
    run_bank(*shared.bank(), shared_input, workspace.shared_rows, shared_sums, workspace.scratch);
  auto& stage = workspace.scratch.template kept<ExpertStage<Scalar>>();
  stage.clear();
  if (staged != nullptr) {
    stage.add({staged, &input, rows, left, sums.data()});
    left = none;
  }
  if (staged_shared != nullptr)
    stage.add({staged_shared, &shared_input, workspace.shared_rows, none, shared_sums.data()});
  const bool weighted = !left.empty() || (shared.bank() && shared.has_gate());
  constexpr Index block = copy_block_rows;
  stage.run((x.rows() + block - 1) / block, [&](Index task) {
    const Index begin = task * block;
    const Index end = std::min(begin + block, x.rows());
    for (Index t = begin; t < end; ++t) {
      RowSum<Scalar> sum(y.row(t), d_model, weighted);
      add_token<Scalar>(rows, plan, left, t, sum);
      if (shared.bank()) shared.add_token(workspace, t, sum);
      if (output_bias.size() != 0) sum.add(output_bias.data(), 1);
      sum.finish();
    }
    add_unweighted(experts, routing, plan, begin, y.middle_rows(begin, end - begin));
  });
}

}  // namespace moe::inline MOE_ABI::detail
