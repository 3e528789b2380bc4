// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// One run of a layer for a while, in milliseconds a forward: the program that flags.sh compiles
// twice.
#include <chrono>
#include <cstdio>
#include <random>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  moe::SparseMoe layer{
      moe::TopKRouter<float>::random({.d_model = 1024, .num_experts = 16, .top_k = 4}, rng),
      moe::SwiGluExperts<float>::random({.num_experts = 16, .d_model = 1024, .d_ff = 512}, rng)};
  double total = 0;
  for (const moe::Index tokens : {1, 16, 256}) {
    const moe::Matrix<float> x = moe::Matrix<float>::Random(tokens, 1024);  // (T, D)
    moe::Matrix<float> y(tokens, 1024);                                     // (T, D)
    const int repetitions = tokens == 256 ? 6 : tokens == 16 ? 24 : 96;
    layer.forward(x, y);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repetitions; ++i) layer.forward(x, y);
    total +=
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  std::printf("%.3f\n", total);
}
