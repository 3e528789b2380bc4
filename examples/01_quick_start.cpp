// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A sparse mixture-of-experts layer in fifteen lines.
#include <cstdio>
#include <random>
#include <utility>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  const moe::Matrix<float> x = moe::Matrix<float>::Random(16, 128);  // (T, D)

  auto router = moe::TopKRouter<float>::random({.d_model = 128, .num_experts = 8, .top_k = 2}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 128, .d_ff = 256}, rng);
  moe::SparseMoe layer{std::move(router), std::move(experts)};

  moe::Matrix<float> y(x.rows(), x.cols());  // (T, D)
  const auto& routing = layer.forward(x, y);
  const float balance = moe::losses::load_balancing(routing);
  std::printf("token 0 -> experts %d and %d, load balancing %.3f\n", routing.experts(0, 0),
              routing.experts(0, 1), static_cast<double>(balance));
}
