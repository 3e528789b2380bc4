// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Mixture-of-Depths: an eighth of the tokens pass through a dense feed-forward block, the others
// around it. The block may be anything that maps tokens to what a residual adds.
#include <cstdio>
#include <random>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  const auto block =
      moe::SwiGluExperts<float>::random({.num_experts = 1, .d_model = 64, .d_ff = 256}, rng);
  const moe::Vector<float> weight = moe::Vector<float>::Random(64);
  const moe::MixtureOfDepths<float> depths(
      {.d_model = 64, .capacity = 0.125, .sequence_tokens = 128}, weight);

  const moe::Matrix<float> x = moe::Matrix<float>::Random(256, 64);  // two sequences, (T, D)
  moe::Matrix<float> y(x.rows(), x.cols());                          // (T, D)
  moe::Scratch scratch;
  const auto chosen = depths.forward(x, y, [&](auto in, auto out) {
    moe::DispatchPlan plan;
    moe::make_full_plan(in.rows(), 1, plan);
    block.forward({in, plan}, out, scratch);
  });

  moe::Index unchanged = 0;
  for (moe::Index t = 0; t < x.rows(); ++t) unchanged += y.row(t) == x.row(t) ? 1 : 0;
  std::printf("%zu of %td tokens passed through the block, %td are as they were\n", chosen.size(),
              x.rows(), unchanged);
}
