// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <exception>
#include <iostream>
#include <random>

#include <moe/moe.hpp>
#if defined(CONSUMER_HAS_IO)
#include <moe/io/checkpoint.hpp>
#endif

int main() {
#if defined(CONSUMER_HAS_IO)
  try {
    moe::io::Checkpoint::open("no such file");
    return 1;
  } catch (const std::exception&) {
  }
#endif
  std::mt19937_64 rng(1);
  moe::SparseMoe layer{
      moe::TopKRouter<float>::random({.d_model = 8, .num_experts = 4, .top_k = 2}, rng),
      moe::SwiGluExperts<float>::random({.num_experts = 4, .d_model = 8, .d_ff = 16}, rng)};
  const moe::Matrix<float> x = moe::Matrix<float>::Random(3, 8);  // (T, D)
  moe::Matrix<float> y(3, 8);                                     // (T, D)
  const auto load = moe::metrics::expert_load(layer.forward(x, y));
  std::cout << y.rows() << " tokens of " << y.cols() << ", "
            << std::count_if(load.begin(), load.end(), [](auto n) { return n > 0; })
            << " experts used\n";
}
