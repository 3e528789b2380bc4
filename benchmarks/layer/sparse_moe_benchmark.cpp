// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// forward  the whole block on a supplied routing: plan, experts, combine
// dense    its dense twin: one expert as wide as the K active ones together, for every token
// router   the router alone: logits, scores, choice
#include <memory>
#include <random>
#include <string>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

/// The last object asked for, kept while consecutive benchmarks ask for the same one.
template <class Object>
class Kept {
 public:
  template <class Make>
  static Object& get(const std::string& key, const Make& make) {
    if (key_ != key) {
      object_.reset();  // Before the next one is made: two large banks may not fit.
      object_ = std::make_unique<Object>(make());
      key_ = key;
    }
    return *object_;
  }

 private:
  static inline std::string key_;
  static inline std::unique_ptr<Object> object_;
};

void count(Rates& rates, const Shape& shape, double tokens, double weight_bytes) {
  const auto active_weights = static_cast<double>(shape.top_k * shape.weights_per_expert());
  rates.per_second("flop/s", 2 * tokens * active_weights);
  rates.per_second("weight_bytes/s", weight_bytes);
  rates.per_second("tokens/s", tokens);
}

template <class Bank>
void forward(benchmark::State& state, const Shape& shape, Index tokens) {
  using Layer = moe::SparseMoe<moe::TopKRouter<float>, Bank>;
  const auto& layer = Kept<Layer>::get(shape.name, [&] {
    std::mt19937_64 rng(1);
    auto router = moe::TopKRouter<float>::random(
        {.d_model = shape.d_model, .num_experts = shape.num_experts, .top_k = shape.top_k}, rng);
    return Layer(
        std::move(router),
        Bank::random(
            {.num_experts = shape.num_experts, .d_model = shape.d_model, .d_ff = shape.d_ff}, rng));
  });
  const RoutingSet set(shape, tokens);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::Workspace<float> workspace;
  double weight_bytes = 0;
  std::size_t turn = 0;
  Rates rates(state);
  for (auto _ : state) {
    layer.forward(x, set.routings[turn], y, workspace);
    benchmark::DoNotOptimize(y.data());
    weight_bytes += set.weight_bytes[turn];
    turn = (turn + 1) % RoutingSet::count;
  }
  count(rates, shape, static_cast<double>(state.iterations() * tokens), weight_bytes);
}

template <class Bank>
void dense(benchmark::State& state, const Shape& shape, Index tokens) {
  const auto& bank = Kept<Bank>::get(shape.name, [&] {
    std::mt19937_64 rng(1);
    return Bank::random(
        {.num_experts = 1, .d_model = shape.d_model, .d_ff = shape.top_k * shape.d_ff}, rng);
  });
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::DispatchPlan plan;
  moe::make_full_plan(tokens, 1, plan);
  moe::Scratch scratch;
  Rates rates(state);
  for (auto _ : state) {
    bank.forward({x, plan}, y, scratch);
    benchmark::DoNotOptimize(y.data());
  }
  const auto weights = static_cast<double>(shape.top_k * shape.weights_per_expert());
  const auto iterations = static_cast<double>(state.iterations());
  count(rates, shape, iterations * static_cast<double>(tokens),
        iterations * weights * sizeof(float));
}

void router(benchmark::State& state, const Shape& shape, Index tokens) {
  std::mt19937_64 rng(1);
  const auto router = moe::TopKRouter<float>::random(
      {.d_model = shape.d_model, .num_experts = shape.num_experts, .top_k = shape.top_k}, rng);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  moe::Routing<float> routing;
  Rates rates(state);
  for (auto _ : state) {
    router.route(x, {}, routing);
    benchmark::DoNotOptimize(routing.experts.data());
  }
  rates.per_second("tokens/s", static_cast<double>(state.iterations() * tokens));
}

template <class Bank>
void register_with(const Shape& shape) {
  register_all("forward", shape, benchmark::kMillisecond, forward<Bank>);
  register_all("dense", shape, benchmark::kMillisecond, dense<Bank>);
  register_all("router", shape, benchmark::kMillisecond, router);
}

}  // namespace

void register_layer(const Shape& shape) {
  if (shape.gating == Gating::gated) {
    register_with<moe::SwiGluExperts<float>>(shape);
  } else {
    register_with<moe::ReluExperts<float>>(shape);
  }
}

}  // namespace benchmarks
