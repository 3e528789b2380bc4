// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Balance between devices, and choices as they would be without a selection bias.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/token_mask.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI::losses {
namespace detail {

inline void check_devices(const char* where, Index devices, Index experts) {
  moe::detail::check(devices > 0 && experts % devices == 0, where,
                     "num_experts must be a multiple of num_devices");
}

}  // namespace detail

/// sum over devices of f_d P_d: f_d the mean over the device's experts of E c_e / (K T), P_d the
/// sum of their mean probabilities. 1 at balance. Devices hold equal, adjacent ranges of experts.
///
/// Throws  as load_balancing; std::invalid_argument if the devices do not divide E.
/// Source  Dai et al. (2024), eq. 15-17, arXiv:2401.06066.
template <class Scalar>
Scalar device_balance(const Routing<Scalar>& routing, Index num_devices, TokenMask mask = {}) {
  const BalanceSums sums = detail::balance_sums("device_balance", routing, mask);
  detail::check_devices("device_balance", num_devices, sums.num_experts());
  if (sums.tokens == 0) return 0;
  const Index per_device = sums.num_experts() / num_devices;
  const double scale = static_cast<double>(sums.num_experts()) /
                       (static_cast<double>(sums.top_k) * sums.tokens * sums.tokens);
  double total = 0;
  for (Index d = 0; d < num_devices; ++d)
    total += sums.choices.segment(d * per_device, per_device).mean() *
             sums.probabilities.segment(d * per_device, per_device).sum();
  return static_cast<Scalar>(total * scale);
}

/// sum over devices of f_d P_d: f_d = D / (M T) times the number of tokens that are sent to the
/// device, where a token goes to at most M devices; P_d as for device_balance. 1 at balance, if
/// every token goes to M devices.
///
/// Throws  as device_balance; std::invalid_argument unless 0 < M <= D.
/// Source  DeepSeek-AI (2024), eq. 29-31, arXiv:2405.04434.
template <class Scalar>
Scalar communication_balance(const Routing<Scalar>& routing, Index num_devices, Index max_devices,
                             TokenMask mask = {}) {
  constexpr const char* where = "communication_balance";
  const BalanceSums sums = detail::balance_sums(where, routing, mask);
  detail::check_devices(where, num_devices, sums.num_experts());
  moe::detail::check(max_devices > 0 && max_devices <= num_devices, where,
                     "max_devices must be from 1 to num_devices");
  if (sums.tokens == 0) return 0;
  const Index per_device = sums.num_experts() / num_devices;
  Vector<double> sent = Vector<double>::Zero(num_devices);
  std::vector<bool> is_sent(static_cast<std::size_t>(num_devices));
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!detail::counts(mask, t)) continue;
    is_sent.assign(is_sent.size(), false);
    for (Index k = 0; k < routing.top_k(); ++k)
      if (routing.experts(t, k) != no_expert)
        is_sent[static_cast<std::size_t>(routing.experts(t, k) / per_device)] = true;
    for (Index d = 0; d < num_devices; ++d) sent[d] += is_sent[static_cast<std::size_t>(d)] ? 1 : 0;
  }
  double total = 0;
  for (Index d = 0; d < num_devices; ++d)
    total += sent[d] * sums.probabilities.segment(d * per_device, per_device).sum();
  return static_cast<Scalar>(total * static_cast<double>(num_devices) /
                             (static_cast<double>(max_devices) * sums.tokens * sums.tokens));
}

/// The routing with the K experts of the largest scores in place of those that were chosen, where a
/// selection bias, groups or noise took part in the choice. Megatron's losses count these.
///
/// Values  weights are the scores.
/// Throws  std::invalid_argument if the routing was made without scores.
template <class Scalar>
Routing<Scalar> choices_by_score(const Routing<Scalar>& routing) {
  moe::detail::check_routing("choices_by_score", routing);
  moe::detail::check_has_scores("choices_by_score", routing);
  moe::detail::check(routing.top_k() <= routing.num_experts, "choices_by_score",
                     "there are fewer experts than choices");
  Routing<Scalar> result = routing;
  result.renormalization = {};  // The weights are the scores.
  result.scale_after_drop = 1;
  std::vector<Scalar> key(static_cast<std::size_t>(routing.num_experts));
  for (Index t = 0; t < routing.tokens(); ++t) {
    for (Index e = 0; e < routing.num_experts; ++e)
      key[static_cast<std::size_t>(e)] = moe::detail::selection_key(routing.scores(t, e));
    select_top_k(key.data(), routing.num_experts, routing.top_k(),
                 moe::detail::row_data(result.experts, t));
    for (Index k = 0; k < routing.top_k(); ++k)
      result.weights(t, k) = routing.scores(t, result.experts(t, k));
  }
  return result;
}

}  // namespace moe::inline MOE_ABI::losses
