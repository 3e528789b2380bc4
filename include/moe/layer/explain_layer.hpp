// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A layer's memory and work, from its parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/active_isa.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/layer/explain.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::detail {

/// See SparseMoe::workspace_bytes.
template <class BankT, class SharedBankT>
double workspace_bytes(const BankT& experts_bank, const SharedExperts<SharedBankT>& shared,
                       Index top_k, Index tokens) {
  using Scalar = typename BankT::Scalar;
  const auto t = static_cast<double>(tokens);
  const auto experts = static_cast<double>(experts_bank.num_experts());
  const double choices = t * static_cast<double>(top_k);
  const auto width = static_cast<double>(experts_bank.d_model());
  double bytes = choices * (sizeof(ExpertIndex) + sizeof(Scalar)) +
                 2 * t * experts * sizeof(Scalar) +
                 choices * (sizeof(TokenSlot) + sizeof(std::int32_t)) +
                 (experts + 1) * sizeof(Index) + choices * width * sizeof(Scalar);
  // Where the plan's blocks of tokens begin in each expert's rows.
  const Index plan_blocks = (tokens + plan_block_tokens - 1) / plan_block_tokens;
  bytes += static_cast<double>(plan_blocks) * experts * sizeof(std::int32_t);
  const Index most_rows = kernels::tile_kernels<Scalar, Scalar>().most_rows;
  Index jobs = 0;
  Index blocks = 0;
  bool prepares = false;
  const auto add_part = [&](const auto& bank, Index rows) {
    const auto* const staged = staged_bank(bank);
    if (staged == nullptr) return false;
    bytes += stage_bytes<Scalar>(staged->stage_shape(), static_cast<std::size_t>(rows));
    prepares = prepares || staged->stage_shape().prepares_hidden;
    jobs += bank.num_experts();
    blocks += rows / most_rows;
    return true;
  };
  if (add_part(experts_bank, tokens * top_k)) bytes += choices * sizeof(Scalar);
  if (shared.bank()) {
    const double rows = t * static_cast<double>(shared.bank()->num_experts());
    bytes += rows * (sizeof(TokenSlot) + sizeof(std::int32_t) + width * sizeof(Scalar));
    bytes += static_cast<double>(shared.bank()->num_experts() + 1) * sizeof(Index);
    if (shared.has_gate()) bytes += rows * sizeof(Scalar);
    add_part(*shared.bank(), tokens * shared.bank()->num_experts());
  }
  // What each thread works on: an expert of the stage, a tile of tokens of the router's product,
  // and a token's scores.
  const int threads = parallel::available_threads();
  const double of_thread = static_cast<double>(stage_sums_size + stage_expert_size()) +
                           static_cast<double>(most_rows) * (kernels::panel_width + width) +
                           3 * experts;
  return bytes + ExpertStage<Scalar>::list_bytes(jobs, blocks, threads, prepares) +
         static_cast<double>(threads) * of_thread * sizeof(Scalar);
}

/// See SparseMoe::explain.
template <class BankT, class SharedBankT>
Explanation explain_layer(const BankT& experts, const SharedExperts<SharedBankT>& shared,
                          const DispatchPlan& plan, const MachineLimits& limits) {
  Explanation explanation;
  explanation.isa = std::is_same_v<typename BankT::Scalar, float> ? active_isa() : Isa::scalar;
  explanation.threads = parallel::available_threads();
  explanation.tokens = plan.tokens;
  explanation.dropped = static_cast<Index>(plan.dropped.size());
  explanation.limits = limits;
  explain_bank(staged_bank(experts), plan, false, explanation);
  if (shared.bank()) {
    DispatchPlan shared_plan;
    make_full_plan(plan.tokens, shared.bank()->num_experts(), shared_plan);
    explain_bank(staged_bank(*shared.bank()), shared_plan, true, explanation);
  }
  explanation.workspace_bytes = workspace_bytes(experts, shared, plan.top_k, plan.tokens);
  return explanation;
}

}  // namespace moe::inline MOE_ABI::detail
