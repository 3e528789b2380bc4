// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Load balancing: the product of each expert's share of the choices and its mean probability.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/probabilities.hpp"
#include "moe/losses/token_mask.hpp"

namespace moe::inline MOE_ABI::losses {

/// The scale of the load-balancing loss. With c_e the choices of expert e over all slots, c1_e its
/// first choices, and P_e its mean probability over the tokens:
enum class BalanceScale {
  per_choice,    ///< E / (T K) sum c_e P_e,  1 at balance: Megatron, MegaBlocks, DeepSeek,
                 ///< DeepSpeed for K from 3 on
  per_token,     ///< E / T     sum c_e P_e,  K at balance: transformers' Mixtral family, flaxformer
  first_choice,  ///< E / T     sum c1_e P_e, 1 at balance: Switch; GShard's code; Tutel; DeepSpeed
                 ///< for K = 1 and 2
  gshard_paper,  ///< 1 / (E T) sum c1_e P_e, 1 / E^2 at balance: GShard's text
  unscaled,      ///< 1 / T     sum c_e P_e,  K / E at balance: llm-baselines
};

/// What the balancing losses need of a batch. Sums of several batches, or layers, may be added up.
///
/// Shapes  choices, first_choices, probabilities (E): sums over the tokens that count.
struct BalanceSums {
  Index top_k = 0;
  double tokens = 0;
  Vector<double> choices{};
  Vector<double> first_choices{};
  Vector<double> probabilities{};

  Index num_experts() const noexcept { return choices.size(); }

  BalanceSums& operator+=(const BalanceSums& other) {
    if (num_experts() == 0) return *this = other;
    moe::detail::check_size("BalanceSums", "num_experts()", num_experts(), other.num_experts());
    moe::detail::check_size("BalanceSums", "top_k", top_k, other.top_k);
    tokens += other.tokens;
    choices += other.choices;
    first_choices += other.first_choices;
    probabilities += other.probabilities;
    return *this;
  }
};

namespace detail {

/// balance_sums with errors that begin with `where`.
template <class Scalar>
BalanceSums balance_sums(const char* where, const Routing<Scalar>& routing, TokenMask mask) {
  moe::detail::check_routing(where, routing);
  const auto counted = count_tokens(where, mask, routing.tokens());
  if (counted > 0) moe::detail::check_has_scores(where, routing);
  BalanceSums sums{.top_k = routing.top_k(), .tokens = static_cast<double>(counted)};
  sums.choices.setZero(routing.num_experts);
  sums.first_choices.setZero(routing.num_experts);
  sums.probabilities.setZero(routing.num_experts);
  Vector<double> probability(routing.num_experts);  // (E)
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!counts(mask, t)) continue;
    for (Index k = 0; k < routing.top_k(); ++k)
      if (routing.experts(t, k) != no_expert) sums.choices[routing.experts(t, k)] += 1;
    if (routing.experts(t, 0) != no_expert) sums.first_choices[routing.experts(t, 0)] += 1;
    moe::detail::token_probabilities(routing, t, probability);
    sums.probabilities += probability;
  }
  return sums;
}

}  // namespace detail

/// The sums of one routing. Choices are counted before any drop.
///
/// Throws  std::invalid_argument if the routing was made without scores; ShapeError if the mask is
///         not T long.
template <class Scalar>
BalanceSums balance_sums(const Routing<Scalar>& routing, TokenMask mask = {}) {
  return detail::balance_sums("balance_sums", routing, mask);
}

/// Load balancing from shares of the choices and mean probabilities that may come from different
/// batches: with the choices of a global batch, the loss of one of its micro-batches.
///
/// Values  as BalanceScale says; 0 where no token counts.
/// Throws  ShapeError if the sums are of different layers; std::invalid_argument if top_k is not
///         positive.
/// Source  Qiu et al. (2025), arXiv:2501.11873.
inline double load_balancing(const BalanceSums& choices, const BalanceSums& probabilities,
                             BalanceScale scale = BalanceScale::per_choice) {
  constexpr const char* where = "load_balancing";
  const Index size = choices.num_experts();
  moe::detail::check_size(where, "probabilities.num_experts()", size, probabilities.num_experts());
  moe::detail::check_size(where, "choices.first_choices.size()", size,
                          choices.first_choices.size());
  moe::detail::check_size(where, "probabilities.probabilities.size()", size,
                          probabilities.probabilities.size());
  if (choices.tokens == 0 || probabilities.tokens == 0) return 0;
  moe::detail::check(choices.top_k > 0, where, "choices.top_k must be positive");
  const bool first_only =
      scale == BalanceScale::first_choice || scale == BalanceScale::gshard_paper;
  const Vector<double>& counts = first_only ? choices.first_choices : choices.choices;
  const double total =
      counts.dot(probabilities.probabilities) / (choices.tokens * probabilities.tokens);
  const auto experts = static_cast<double>(choices.num_experts());
  switch (scale) {
    case BalanceScale::per_choice:
      return total * experts / static_cast<double>(choices.top_k);
    case BalanceScale::gshard_paper:
      return total / experts;
    case BalanceScale::unscaled:
      return total;
    default:
      return total * experts;
  }
}

inline double load_balancing(const BalanceSums& sums,
                             BalanceScale scale = BalanceScale::per_choice) {
  return load_balancing(sums, sums, scale);
}

/// Load balancing of Switch and GShard: the product of an expert's share of the choices and its
/// mean probability, summed over the experts.
///
/// Values  1 at balance with the default scale; see BalanceScale. 0 where no token counts. Choices
///         are counted before any drop. Scores that are no distribution are normalised first, since
///         a model could otherwise lower the loss by shrinking all of them.
/// Throws  std::invalid_argument if the routing was made without scores; ShapeError if the mask is
///         not T long.
/// Source  Fedus et al. (2021), eq. 4-6, arXiv:2101.03961; Lepikhin et al. (2020),
///         arXiv:2006.16668.
template <class Scalar>
Scalar load_balancing(const Routing<Scalar>& routing, BalanceScale scale = BalanceScale::per_choice,
                      TokenMask mask = {}) {
  return static_cast<Scalar>(
      load_balancing(detail::balance_sums("load_balancing", routing, mask), scale));
}

/// The same for each group of `group_tokens` tokens, such as a sequence, mean over the groups that
/// have a token that counts. The last group may be shorter.
///
/// Values  as for all tokens together.
/// Throws  as above; std::invalid_argument if group_tokens is not positive.
/// Source  per group: Mesh TensorFlow, lingvo (first_choice), flaxformer (per_token); per sequence:
///         transformers' Switch, `seq_aux` of DeepSeek-V2, DeepSeek-V3 (per_choice). DeepSeek-V3's
///         text counts the K best scores without bias, which `choices_by_score` gives.
template <class Scalar>
Scalar load_balancing_by_group(const Routing<Scalar>& routing, Index group_tokens,
                               BalanceScale scale = BalanceScale::per_choice, TokenMask mask = {}) {
  constexpr const char* where = "load_balancing_by_group";
  moe::detail::check(group_tokens > 0, where, "group_tokens must be positive");
  detail::count_tokens(where, mask, routing.tokens());
  double total = 0;
  double groups = 0;
  Routing<Scalar> part;
  for (Index begin = 0; begin < routing.tokens(); begin += group_tokens) {
    const Index size = std::min(group_tokens, routing.tokens() - begin);
    part.num_experts = routing.num_experts;
    part.score_function = routing.score_function;
    part.experts = routing.experts.middleRows(begin, size);
    part.weights = routing.weights.middleRows(begin, size);
    if (routing.scores.size() != 0) part.scores = routing.scores.middleRows(begin, size);
    const TokenMask part_mask = mask.empty() ? mask
                                             : mask.subspan(static_cast<std::size_t>(begin),
                                                            static_cast<std::size_t>(size));
    const BalanceSums sums = detail::balance_sums(where, part, part_mask);
    if (sums.tokens == 0) continue;
    total += load_balancing(sums, scale);
    groups += 1;
  }
  return static_cast<Scalar>(groups > 0 ? total / groups : 0);
}

/// The loss over several layers taken as one long batch, as transformers' Mixtral family computes
/// it. MegaBlocks takes the mean of the layers' losses instead.
///
/// Values  as for one layer.
/// Throws  as above; ShapeError if the layers differ in E or K. The mask is the same for each
/// layer.
template <class Scalar>
Scalar load_balancing_of_layers(std::span<const Routing<Scalar>* const> layers,
                                BalanceScale scale = BalanceScale::per_token, TokenMask mask = {}) {
  BalanceSums sums;
  for (const Routing<Scalar>* const layer : layers)
    sums += detail::balance_sums("load_balancing_of_layers", *layer, mask);
  return static_cast<Scalar>(load_balancing(sums, scale));
}

}  // namespace moe::inline MOE_ABI::losses
