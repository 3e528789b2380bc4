// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A router of one's own: any type that models moe::Router. This one deals tokens out in turn.
#include <cstdio>
#include <random>

#include <moe/moe.hpp>

struct RoundRobinRouter {
  using Scalar = float;

  moe::Index d_model() const { return 64; }
  moe::Index num_experts() const { return 4; }
  moe::Index top_k() const { return 1; }

  void route(moe::MatrixView<const float> x, moe::RouteOptions /*options*/,
             moe::Routing<float>& routing) const {
    // There are no logits and scores to keep.
    const moe::RouteOptions nothing{.keep_logits = false, .keep_scores = false};
    routing.resize(x.rows(), num_experts(), top_k(), nothing);
    for (moe::Index t = 0; t < x.rows(); ++t) {
      routing.experts(t, 0) = static_cast<moe::ExpertIndex>(t % num_experts());
      routing.weights(t, 0) = 1;
    }
  }
};

static_assert(moe::Router<RoundRobinRouter>);

int main() {
  std::mt19937_64 rng(1);
  moe::SparseMoe layer{
      RoundRobinRouter{},
      moe::GeluExperts<float>::random({.num_experts = 4, .d_model = 64, .d_ff = 128}, rng)};

  const moe::Matrix<float> x = moe::Matrix<float>::Random(32, 64);  // (T, D)
  moe::Matrix<float> y(x.rows(), x.cols());                         // (T, D)
  const auto load = moe::metrics::expert_load(layer.forward(x, y));
  std::printf("tokens per expert: %td %td %td %td\n", load[0], load[1], load[2], load[3]);
}
