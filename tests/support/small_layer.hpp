// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A whole layer of eight gated experts.
#pragma once

#include <random>
#include <utility>

#include <moe/fwd.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace test_support {

template <class Scalar>
using Bank = moe::SwiGluExperts<Scalar>;
template <class Scalar>
using Layer = moe::SparseMoe<moe::TopKRouter<Scalar>, Bank<Scalar>>;

struct SmallLayer {
  Index d_model = 13;
  Index d_ff = 20;
  Index top_k = 2;
  moe::RoutingRule rule = moe::presets::mixtral();
  bool shared = false;
  moe::Capacity capacity = {};
};

template <class Scalar>
Layer<Scalar> small_layer(const SmallLayer& options) {
  constexpr Index num_experts = 8;
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<Scalar>::random({.d_model = options.d_model,
                                                 .num_experts = num_experts,
                                                 .top_k = options.top_k,
                                                 .rule = options.rule},
                                                rng);
  moe::SharedExperts<Bank<Scalar>> shared;
  if (options.shared)
    shared = moe::SharedExperts(random_bank<Bank<Scalar>>(
        {.num_experts = 2, .d_model = options.d_model, .d_ff = options.d_ff}, 50));
  return Layer<Scalar>(
      std::move(router),
      random_bank<Bank<Scalar>>(
          {.num_experts = num_experts, .d_model = options.d_model, .d_ff = options.d_ff}, 20),
      std::move(shared), options.capacity);
}

}  // namespace test_support
