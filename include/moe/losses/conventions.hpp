// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The balancing loss under the name of each system, and conversion between them.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/token_mask.hpp"
#include "moe/losses/variation.hpp"

namespace moe::inline MOE_ABI::losses {

/// E / T sum c1_e P_e: 1 at balance.
/// Source  Fedus et al. (2021), eq. 4-6, arXiv:2101.03961.
template <class Scalar>
Scalar switch_transformer(const Routing<Scalar>& routing, TokenMask mask = {},
                          std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::first_choice, mask, gradient);
}

/// 1 / (E T) sum c1_e P_e: 1 / E^2 at balance.
/// Source  Lepikhin et al. (2020), section 2.2, arXiv:2006.16668.
template <class Scalar>
Scalar gshard_paper(const Routing<Scalar>& routing, TokenMask mask = {},
                    std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::gshard_paper, mask, gradient);
}

/// E^2 times the mean over the experts of c1_e / T P_e: 1 at balance.
/// Source  lingvo `gshard_layers.py`, Mesh TensorFlow `moe.py`.
template <class Scalar>
Scalar gshard_code(const Routing<Scalar>& routing, TokenMask mask = {},
                   std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::first_choice, mask, gradient);
}

/// E / T sum c_e P_e: K at balance.
/// Source  transformers `load_balancing_loss_func` of the Mixtral family.
template <class Scalar>
Scalar transformers(const Routing<Scalar>& routing, TokenMask mask = {},
                    std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::per_token, mask, gradient);
}

/// E / T sum c_e P_e, mean over groups of tokens: K at balance.
/// Source  flaxformer `_load_balancing_loss`.
template <class Scalar>
Scalar flaxformer(const Routing<Scalar>& routing, Index group_tokens, TokenMask mask = {},
                  std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing_by_group(routing, group_tokens, BalanceScale::per_token, mask, gradient);
}

/// E / (K T^2) sum c_e (sum_t p_te): 1 at balance.
/// Source  Megatron-LM `switch_load_balancing_loss_func`.
template <class Scalar>
Scalar megatron(const Routing<Scalar>& routing, TokenMask mask = {},
                std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::per_choice, mask, gradient);
}

/// E / (T K) sum c_e P_e: 1 at balance; over several layers, their mean.
/// Source  MegaBlocks `batched_load_balancing_loss`.
template <class Scalar>
Scalar megablocks(const Routing<Scalar>& routing, TokenMask mask = {},
                  std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::per_choice, mask, gradient);
}

/// For K of 1 and 2, E / T sum c1_e P_e; from 3 on, E / (T K) sum c_e P_e: 1 at balance.
/// Source  DeepSpeed `top1gating`, `top2gating`, `topkgating`.
template <class Scalar>
Scalar deepspeed(const Routing<Scalar>& routing, TokenMask mask = {},
                 std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(
      routing, routing.top_k() <= 2 ? BalanceScale::first_choice : BalanceScale::per_choice, mask,
      gradient);
}

/// E / T sum c1_e P_e: 1 at balance.
/// Source  Tutel `gshard_loss`.
template <class Scalar>
Scalar tutel(const Routing<Scalar>& routing, TokenMask mask = {},
             std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::first_choice, mask, gradient);
}

/// E / T'^2 sum c'_e (sum_t p_te), with the T' tokens whose choice the capacity kept, and c'_e of
/// them: 1 at balance without drops, more with them; 0 where nothing was kept. For K = 1.
///
/// Throws  ShapeError or std::invalid_argument if routing and plan do not fit each other, K is not
///         1, or the routing was made without scores.
/// Source  fastmoe `SwitchGate`. Its `GShardGate` has `gshard_code`, if all experts are local.
template <class Scalar>
Scalar fastmoe_switch(const Routing<Scalar>& routing, const DispatchPlan& plan, TokenMask mask = {},
                      std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  constexpr const char* where = "fastmoe_switch";
  moe::detail::check(routing.top_k() == 1, where, "top_k must be 1");
  moe::detail::check_plan_of(where, routing, plan);
  const auto slopes_of = [&](BalanceSums sums) {
    for (const TokenSlot dropped : plan.dropped) {
      if (!detail::counts(mask, dropped.token)) continue;
      sums.first_choices[routing.experts(dropped.token, 0)] -= 1;
      sums.tokens -= 1;
    }
    return load_balancing_slopes(sums, sums, BalanceScale::first_choice);
  };
  return static_cast<Scalar>(detail::linear_loss(where, routing, mask, gradient, slopes_of));
}

/// (importance + load) / 2 with unbiased variances, where importance is that of the scores of all
/// experts, not of the chosen alone: 0 at balance.
///
/// Shapes  load (E), of `smooth_load` by LoadThreshold::kth, which Tutel gives scores for logits.
/// Values  the gradient is the importance's, with respect to the logits; the load's is that of
///         `add_load_gradient` for slopes of `variation_slopes(load, Variance::unbiased) / 2`.
/// Throws  std::invalid_argument if the routing was made without scores.
/// Source  Tutel `load_importance_loss`.
template <class Scalar>
Scalar tutel_load_importance(const Routing<Scalar>& routing, const Vector<double>& load,
                             TokenMask mask = {},
                             std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  constexpr const char* where = "tutel_load_importance";
  detail::check_gradient(where, gradient, routing.tokens(), routing.num_experts);
  const BalanceSums sums = detail::balance_sums(where, routing, mask);
  add_probability_gradient<Scalar>(
      routing, variation_slopes(sums.probabilities, Variance::unbiased) / 2, gradient, mask);
  return static_cast<Scalar>(
      (variation(sums.probabilities, Variance::unbiased) + variation(load, Variance::unbiased)) /
      2);
}

/// sum f_e P_e with f_e = E c_e / (K T): 1 at balance. The expert-level loss.
/// Source  Dai et al. (2024), eq. 12-14, arXiv:2401.06066.
template <class Scalar>
Scalar deepseek_expert(const Routing<Scalar>& routing, TokenMask mask = {},
                       std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing(routing, BalanceScale::per_choice, mask, gradient);
}

/// The same for each sequence, mean over the sequences: 1 at balance. For DeepSeek-V3 it is the
/// complementary sequence-wise loss, which the paper multiplies by 1e-4: scores are normalised, and
/// the choices count as they were made, with the selection bias.
/// Source  DeepSeek-V2, `seq_aux` of its `modeling_deepseek.py`; DeepSeek-AI (2024), eq. 17-20,
///         arXiv:2412.19437.
/// Differs from Megatron, which counts the K best scores: give it `choices_by_score(routing)`.
template <class Scalar>
Scalar deepseek_sequence(const Routing<Scalar>& routing, Index sequence_tokens, TokenMask mask = {},
                         std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return load_balancing_by_group(routing, sequence_tokens, BalanceScale::per_choice, mask,
                                 gradient);
}

/// Brings a balancing loss from one scale to another, for E experts and K choices.
///
/// Throws  std::invalid_argument between losses of first choices and of all choices for K > 1,
///         which no factor converts, or if E or K is not positive.
inline double convert(double loss, BalanceScale from, BalanceScale to, Index num_experts,
                      Index top_k) {
  moe::detail::check(num_experts > 0 && top_k > 0, "convert",
                     "num_experts and top_k must be positive");
  const auto is_first = [](BalanceScale scale) {
    return scale == BalanceScale::first_choice || scale == BalanceScale::gshard_paper;
  };
  moe::detail::check(top_k == 1 || is_first(from) == is_first(to), "convert",
                     "one loss counts first choices, the other all");
  return loss / detail::scale_factor(from, num_experts, top_k) *
         detail::scale_factor(to, num_experts, top_k);
}

}  // namespace moe::inline MOE_ABI::losses
