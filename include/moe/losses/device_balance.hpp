// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Balance between devices, and choices as they would be without a selection bias.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/losses/token_mask.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI::losses {
namespace detail {

inline void check_devices(const char* where, Index devices, Index experts) {
  moe::detail::check(devices > 0 && experts % devices == 0, where,
                     "num_experts must be a multiple of num_devices");
}

/// Slopes of the communication balance: the share of the tokens that are sent to an expert's
/// device.
template <class Scalar>
Vector<double> communication_slopes(const Routing<Scalar>& routing, const BalanceSums& sums,
                                    Index num_devices, Index max_devices, TokenMask mask) {
  if (sums.tokens == 0) return Vector<double>::Zero(sums.num_experts());
  const Index per_device = sums.num_experts() / num_devices;
  Vector<double> slopes = Vector<double>::Zero(sums.num_experts());
  std::vector<bool> is_sent(static_cast<std::size_t>(num_devices));
  for (Index t = 0; t < routing.tokens(); ++t) {
    if (!counts(mask, t)) continue;
    is_sent.assign(is_sent.size(), false);
    for (Index k = 0; k < routing.top_k(); ++k)
      if (routing.experts(t, k) != no_expert)
        is_sent[static_cast<std::size_t>(routing.experts(t, k) / per_device)] = true;
    for (Index d = 0; d < num_devices; ++d)
      if (is_sent[static_cast<std::size_t>(d)])
        slopes.segment(d * per_device, per_device).array() += 1;
  }
  return slopes * (static_cast<double>(num_devices) /
                   (static_cast<double>(max_devices) * sums.tokens * sums.tokens));
}

}  // namespace detail

/// sum over devices of f_d P_d: f_d the mean over the device's experts of E c_e / (K T), P_d the
/// sum of their mean probabilities. 1 at balance. Devices hold equal, adjacent ranges of experts.
///
/// Throws  as load_balancing; std::invalid_argument if the devices do not divide E.
/// Source  Dai et al. (2024), eq. 15-17, arXiv:2401.06066.
template <class Scalar>
Scalar device_balance(const Routing<Scalar>& routing, Index num_devices, TokenMask mask = {},
                      std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  constexpr const char* where = "device_balance";
  const auto slopes_of = [&](const BalanceSums& sums) {
    detail::check_devices(where, num_devices, sums.num_experts());
    Vector<double> slopes = Vector<double>::Zero(sums.num_experts());
    if (sums.tokens == 0) return slopes;
    const Index per_device = sums.num_experts() / num_devices;
    const double scale = static_cast<double>(sums.num_experts()) /
                         (static_cast<double>(sums.top_k) * sums.tokens * sums.tokens);
    for (Index d = 0; d < num_devices; ++d)
      slopes.segment(d * per_device, per_device)
          .setConstant(scale * sums.choices.segment(d * per_device, per_device).mean());
    return slopes;
  };
  return static_cast<Scalar>(detail::linear_loss(where, routing, mask, gradient, slopes_of));
}

/// sum over devices of f_d P_d: f_d = D / (M T) times the number of tokens that are sent to the
/// device, where a token goes to at most M devices; P_d as for device_balance. 1 at balance, if
/// every token goes to M devices.
///
/// Throws  as device_balance; std::invalid_argument unless 0 < M <= D.
/// Source  DeepSeek-AI (2024), eq. 29-31, arXiv:2405.04434.
template <class Scalar>
Scalar communication_balance(const Routing<Scalar>& routing, Index num_devices, Index max_devices,
                             TokenMask mask = {},
                             std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  constexpr const char* where = "communication_balance";
  const auto slopes_of = [&](const BalanceSums& sums) {
    detail::check_devices(where, num_devices, sums.num_experts());
    moe::detail::check(max_devices > 0 && max_devices <= num_devices, where,
                       "max_devices must be from 1 to num_devices");
    return detail::communication_slopes(routing, sums, num_devices, max_devices, mask);
  };
  return static_cast<Scalar>(detail::linear_loss(where, routing, mask, gradient, slopes_of));
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
