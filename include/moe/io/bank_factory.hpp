// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Banks whose activation is known at run time. (optional: needs nlohmann_json)
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/feed_forward.hpp"
#include "moe/io/layer_config.hpp"

namespace moe::inline MOE_ABI::io::detail {

/// make(activation), with the activation that a configuration names.
template <class Make>
auto with_activation(const LayerConfig& config, bool gated, Make&& make)
    -> decltype(make(SwiGlu{})) {
  const auto with = [&](auto activation) {
    if (gated) return make(GatedBy<decltype(activation)>{activation});
    return make(activation);
  };
  switch (config.activation) {
    case CheckpointActivation::gelu:
      return with(Gelu{});
    case CheckpointActivation::gelu_tanh:
      return with(GeluTanh{});
    case CheckpointActivation::relu:
      return with(Relu{});
    case CheckpointActivation::clamped_swiglu:
      return make(config.clamp);
    default:
      return with(Silu{});
  }
}

/// A bank whose activation is known at run time. `matrices(e)` gives expert e.
template <class Scalar, class Matrices>
AnyExperts<Scalar> make_bank(const LayerConfig& config, const ExpertsConfig& sizes, bool gated,
                             Matrices&& matrices) {
  return with_activation(config, gated, [&](auto activation) -> AnyExperts<Scalar> {
    FeedForwardExperts<Scalar, decltype(activation)> bank(sizes, activation);
    for (Index e = 0; e < sizes.num_experts; ++e) {
      const ExpertMatrices<Scalar> expert = matrices(e);
      bank.set_expert(e, expert.weights());
    }
    return bank;
  });
}

}  // namespace moe::inline MOE_ABI::io::detail
