// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What an uneven router costs: balance losses, load metrics, and the choices that a capacity drops.
#include <cstdio>
#include <random>
#include <utility>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<double>::random({.d_model = 64, .num_experts = 8, .top_k = 2}, rng);
  auto experts =
      moe::ReluExperts<double>::random({.num_experts = 8, .d_model = 64, .d_ff = 128}, rng);
  // At most a quarter more rows than an even share, which is 64.
  moe::SparseMoe layer{std::move(router), std::move(experts), {}, {.factor = 1.25}};

  // Tokens that lie to one side make the router prefer some experts.
  const moe::Matrix<double> x =
      (moe::Matrix<double>::Random(256, 64).array() + 0.5).matrix();  // (T, D)
  moe::Matrix<double> y(x.rows(), x.cols());                          // (T, D)
  const auto& routing = layer.forward(x, y);
  const auto load = moe::metrics::expert_load(routing);
  const moe::DispatchPlan& plan = layer.plan();

  std::printf("expert  chosen  ran\n");
  for (moe::Index e = 0; e < 8; ++e)
    std::printf("%6td %7td %4td\n", e, load[static_cast<std::size_t>(e)], plan.rows_of(e));
  std::printf("load balancing %.3f (1 is even), z-loss %.3f, importance %.3f\n",
              moe::losses::load_balancing(routing), moe::losses::z_loss(routing),
              moe::losses::importance(routing));
  std::printf("MaxVio %.3f, CV %.3f, router entropy %.3f nats\n", moe::metrics::max_violation(load),
              moe::metrics::coefficient_of_variation(load), moe::metrics::router_entropy(routing));
  std::printf("dropped %zu of %td choices\n", plan.dropped.size(), routing.tokens() * 2);
}
