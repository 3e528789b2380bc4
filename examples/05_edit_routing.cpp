// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A routing is a value: take the router's, change it, and run the layer on the result. Here expert
// 3 is out of service, and its tokens go to their best other expert.
#include <cstdio>
#include <limits>
#include <random>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  moe::SparseMoe layer{
      moe::TopKRouter<float>::random({.d_model = 64, .num_experts = 8, .top_k = 2}, rng),
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 64, .d_ff = 128}, rng)};
  const moe::Matrix<float> x = moe::Matrix<float>::Random(100, 64);  // (T, D)
  moe::Matrix<float> y(x.rows(), x.cols());                          // (T, D)

  moe::Routing<float> routing = layer.forward(x, y);
  std::printf("expert 3: %td rows by the router\n", layer.plan().rows_of(3));

  // Choose anew from the recorded logits, with expert 3 out of reach.
  moe::TokenChoiceScratch<float> scratch(layer.router().rule(), 8);
  for (moe::Index t = 0; t < routing.tokens(); ++t) {
    routing.logits(t, 3) = -std::numeric_limits<float>::infinity();
    moe::choose_experts<float>(layer.router().rule(), routing.logits.row(t).data(), nullptr, 8, 2,
                               scratch, routing.scores.row(t).data(), routing.experts.row(t).data(),
                               routing.weights.row(t).data());
  }
  layer.forward(x, routing, y);
  std::printf("expert 3: %td rows after the edit\n", layer.plan().rows_of(3));
}
