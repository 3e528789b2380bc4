// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <random>
#include <vector>

#include <moe/moe.hpp>

/// The output of one small layer with the code of the including translation unit.
static std::vector<float> run_layer() {
  std::mt19937_64 rng(1);
  moe::SparseMoe layer{
      moe::TopKRouter<float>::random({.d_model = 24, .num_experts = 4, .top_k = 2}, rng),
      moe::SwiGluExperts<float>::random({.num_experts = 4, .d_model = 24, .d_ff = 40}, rng)};
  moe::Matrix<float> x(70, 24);  // (T, D)
  moe::detail::fill_uniform(x.data(), x.size(), 1, 7);
  moe::Matrix<float> y(70, 24);  // (T, D)
  layer.forward(x, y);
  return {y.data(), y.data() + y.size()};
}
