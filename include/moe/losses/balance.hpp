// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Load balancing: the product of each expert's share of the choices and its mean probability.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/loss_gradient.hpp"
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

/// What sum c_e P_e / T, with mean probabilities P, is multiplied by.
inline double scale_factor(BalanceScale scale, Index num_experts, Index top_k) {
  const auto experts = static_cast<double>(num_experts);
  switch (scale) {
    case BalanceScale::per_choice:
      return experts / static_cast<double>(top_k);
    case BalanceScale::gshard_paper:
      return 1 / experts;
    case BalanceScale::unscaled:
      return 1;
    default:
      return experts;
  }
}

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

/// The gradient of `load_balancing(choices, probabilities, scale)` with respect to
/// probabilities.probabilities, in which it is linear: what `add_probability_gradient` takes.
///
/// Shapes  result (E).
/// Values  0 where no token counts.
/// Throws  as load_balancing.
inline Vector<double> load_balancing_slopes(const BalanceSums& choices,
                                            const BalanceSums& probabilities,
                                            BalanceScale scale = BalanceScale::per_choice) {
  constexpr const char* where = "load_balancing";
  const Index size = choices.num_experts();
  moe::detail::check_size(where, "probabilities.num_experts()", size, probabilities.num_experts());
  moe::detail::check_size(where, "choices.first_choices.size()", size,
                          choices.first_choices.size());
  moe::detail::check_size(where, "probabilities.probabilities.size()", size,
                          probabilities.probabilities.size());
  if (choices.tokens == 0 || probabilities.tokens == 0) return Vector<double>::Zero(size);
  moe::detail::check(choices.top_k > 0, where, "choices.top_k must be positive");
  const bool first_only =
      scale == BalanceScale::first_choice || scale == BalanceScale::gshard_paper;
  const Vector<double>& counts = first_only ? choices.first_choices : choices.choices;
  const double factor =
      detail::scale_factor(scale, size, choices.top_k) / (choices.tokens * probabilities.tokens);
  return factor * counts;
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
  return load_balancing_slopes(choices, probabilities, scale).dot(probabilities.probabilities);
}

inline double load_balancing(const BalanceSums& sums,
                             BalanceScale scale = BalanceScale::per_choice) {
  return load_balancing(sums, sums, scale);
}

namespace detail {

/// A loss of one routing with errors that begin with `where`: linear in the summed probabilities,
/// with the slopes that slopes_of(sums) gives.
template <class Scalar, class SlopesOf>
double linear_loss(const char* where, const Routing<Scalar>& routing, TokenMask mask,
                   const LossGradient<Scalar>& gradient, SlopesOf&& slopes_of) {
  check_gradient(where, gradient, routing.tokens(), routing.num_experts);
  const BalanceSums sums = balance_sums(where, routing, mask);
  const Vector<double> slopes = slopes_of(sums);  // (E)
  add_probability_gradient(routing, slopes, gradient, mask);
  return slopes.dot(sums.probabilities);
}

template <class Scalar>
Scalar load_balancing(const char* where, const Routing<Scalar>& routing, BalanceScale scale,
                      TokenMask mask, const LossGradient<Scalar>& gradient) {
  return static_cast<Scalar>(linear_loss(
      where, routing, mask, gradient,
      [&](const BalanceSums& sums) { return load_balancing_slopes(sums, sums, scale); }));
}

}  // namespace detail

/// Load balancing of Switch and GShard: the product of an expert's share of the choices and its
/// mean probability, summed over the experts.
///
/// Values  1 at balance with the default scale; see BalanceScale. 0 where no token counts. Choices
///         are counted before any drop. Scores that are no distribution are normalised first, since
///         a model could otherwise lower the loss by shrinking all of them. The gradient is with
///         respect to the logits.
/// Throws  std::invalid_argument if the routing was made without scores; ShapeError if the mask is
///         not T long.
/// Source  Fedus et al. (2021), eq. 4-6, arXiv:2101.03961; Lepikhin et al. (2020),
///         arXiv:2006.16668.
template <class Scalar>
Scalar load_balancing(const Routing<Scalar>& routing, BalanceScale scale = BalanceScale::per_choice,
                      TokenMask mask = {},
                      std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  return detail::load_balancing("load_balancing", routing, scale, mask, gradient);
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
                               BalanceScale scale = BalanceScale::per_choice, TokenMask mask = {},
                               std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  constexpr const char* where = "load_balancing_by_group";
  const Index tokens = routing.tokens();
  moe::detail::check(group_tokens > 0, where, "group_tokens must be positive");
  moe::detail::check_routing(where, routing);  // before it is cut into parts
  detail::count_tokens(where, mask, tokens);
  detail::check_gradient(where, gradient, tokens, routing.num_experts);
  const auto mask_of = [&](Index begin, Index size) {
    return mask.empty()
               ? mask
               : mask.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size));
  };
  double groups = 0;
  for (Index begin = 0; begin < tokens; begin += group_tokens) {
    const Index size = std::min(group_tokens, tokens - begin);
    groups += detail::count_tokens(where, mask_of(begin, size), size) > 0 ? 1 : 0;
  }
  double total = 0;
  Routing<Scalar> part;
  for (Index begin = 0; begin < tokens; begin += group_tokens) {
    const Index size = std::min(group_tokens, tokens - begin);
    part.num_experts = routing.num_experts;
    part.score_function = routing.score_function;
    part.experts = routing.experts.middleRows(begin, size);
    part.weights = routing.weights.middleRows(begin, size);
    if (routing.scores.size() != 0) part.scores = routing.scores.middleRows(begin, size);
    LossGradient<Scalar> part_gradient{.coefficient = gradient.coefficient / groups};
    if (gradient.wanted()) part_gradient.sum = gradient.sum.middle_rows(begin, size);
    const TokenMask part_mask = mask_of(begin, size);
    if (detail::count_tokens(where, part_mask, size) > 0)
      total += detail::load_balancing(where, part, scale, part_mask, part_gradient);
  }
  return static_cast<Scalar>(groups > 0 ? total / groups : 0);
}

/// The loss over several layers taken as one long batch, as transformers' Mixtral family computes
/// it. MegaBlocks takes the mean of the layers' losses instead.
///
/// Values  as for one layer.
/// Throws  as above; ShapeError if the layers differ in E or K. The mask is the same for each
/// layer.
///
/// Shapes  gradients: none, or one for each layer.
template <class Scalar>
Scalar load_balancing_of_layers(
    std::span<const Routing<Scalar>* const> layers, BalanceScale scale = BalanceScale::per_token,
    TokenMask mask = {},
    std::type_identity_t<std::span<const LossGradient<Scalar>>> gradients = {}) {
  constexpr const char* where = "load_balancing_of_layers";
  if (!gradients.empty())
    moe::detail::check_size(where, "gradients.size()", static_cast<Index>(layers.size()),
                            static_cast<Index>(gradients.size()));
  BalanceSums sums;
  for (const Routing<Scalar>* const layer : layers)
    sums += detail::balance_sums(where, *layer, mask);
  const Vector<double> slopes = load_balancing_slopes(sums, sums, scale);
  for (std::size_t i = 0; i < gradients.size(); ++i)
    detail::check_gradient(where, gradients[i], layers[i]->tokens(), layers[i]->num_experts);
  for (std::size_t i = 0; i < gradients.size(); ++i)
    add_probability_gradient(*layers[i], slopes, gradients[i], mask);
  return static_cast<Scalar>(slopes.dot(sums.probabilities));
}

}  // namespace moe::inline MOE_ABI::losses
