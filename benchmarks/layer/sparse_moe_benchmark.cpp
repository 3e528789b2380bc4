// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// forward/<shape>/<weights>/T:<tokens>      the whole block on a supplied, uniformly random
//                                           routing: plan, experts, combine
// experts/<shape>/<weights>/T:<tokens>      without the plan
// skew/<skew>/<shape>/<weights>/T:<tokens>  the same on other routings
// dense/<shape>/<weights>/T:<tokens>        its dense twin on the same kernels: one expert as wide
//                                           as the K active ones together, for every token
//
// Counters that compare two layers, in turn: times_dense, of balanced routing over the dense twin;
// times_balanced, of one and the same K experts over balanced routing; times_1024, of a token among
// 16384 over one among 1024.
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

double bank_bytes(const Shape& shape, Index experts, std::size_t weight_bytes) {
  return static_cast<double>(experts * shape.weights_per_expert()) *
         static_cast<double>(weight_bytes);
}

template <class Bank>
using Layer = moe::SparseMoe<moe::TopKRouter<float>, Bank>;

/// Copies of one layer, used in turn.
template <class Bank>
std::vector<Layer<Bank>>& layers_of(const Shape& shape) {
  using Storage = typename Bank::Storage;
  const std::string key = std::string("sparse/") + shape.name + "/" + name_of<Storage>();
  return Kept::get<std::vector<Layer<Bank>>>(key, [&] {
    std::mt19937_64 rng(1);
    std::vector<Layer<Bank>> layers;
    const std::size_t copies = copies_needed(bank_bytes(shape, shape.num_experts, sizeof(Storage)));
    for (std::size_t i = 0; i < copies; ++i)
      layers.emplace_back(shape.router(rng), Bank::random(shape.experts(), rng));
    return layers;
  });
}

/// find(), once for each name: Google Benchmark calls a benchmark more than once.
template <class Find>
double found_once(const std::string& name, const Find& find) {
  static std::map<std::string, double> found;
  const auto at = found.find(name);
  return at != found.end() ? at->second : found.emplace(name, find()).first->second;
}

/// The dense twin's bank: one expert as wide as the K active ones together.
template <class Bank>
Bank dense_bank(const Shape& shape) {
  std::mt19937_64 rng(1);
  return Bank::random(
      {.num_experts = 1, .d_model = shape.d_model, .d_ff = shape.top_k * shape.d_ff}, rng);
}

/// What the literature promises of sparse layers, as counters.
template <class Bank>
void compare(benchmark::State& state, const Layer<Bank>& layer, const Shape& shape, Index tokens,
             Skew skew) {
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::Workspace<float> workspace;
  const RoutingSet set(shape, tokens, skew, 1);
  const std::string name = label("compare", shape, name_of<typename Bank::Storage>(), tokens);
  const auto run = [&](std::size_t /*turn*/) { layer.forward(x, set.at(0), y, workspace); };
  if (skew == Skew::balanced) {
    state.counters["times_dense"] = found_once(name + "/dense", [&] {
      const Bank bank = dense_bank<Bank>(shape);
      moe::DispatchPlan plan;
      moe::make_full_plan(tokens, 1, plan);
      moe::Scratch scratch;
      return ratio_in_turn([&](std::size_t) { bank.forward({x, plan}, y, scratch); }, run);
    });
  } else if (skew == Skew::same) {
    state.counters["times_balanced"] = found_once(name + "/same", [&] {
      const RoutingSet balanced(shape, tokens, Skew::balanced);
      return ratio_in_turn([&](std::size_t) { layer.forward(x, balanced.at(0), y, workspace); },
                           run);
    });
  } else if (skew == Skew::uniform && tokens > 1024) {
    state.counters["times_1024"] = found_once(name, [&] {
      const RoutingSet few(shape, 1024, skew, 1);
      moe::Workspace<float> of_few;
      const moe::MatrixView<float> out = moe::MatrixView<float>(y).middle_rows(0, 1024);
      const auto part = moe::MatrixView<const float>(x).middle_rows(0, 1024);
      return ratio_in_turn([&](std::size_t) { layer.forward(part, few.at(0), out, of_few); }, run) /
             (static_cast<double>(tokens) / 1024);
    });
  }
}

template <class Bank>
void forward(benchmark::State& state, const Shape& shape, Index tokens, Skew skew,
             bool is_planned = false) {
  const auto& layers = layers_of<Bank>(shape);
  const RoutingSet set(shape, tokens, skew);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::Workspace<float> workspace;
  std::size_t turn = 0;
  std::vector<moe::DispatchPlan> plans(is_planned ? set.routings.size() : 0);
  for (std::size_t i = 0; i < plans.size(); ++i) moe::make_plan(set.routings[i], {}, plans[i]);
  const auto run = [&] {
    const Layer<Bank>& layer = layers[turn % layers.size()];
    if (is_planned) {
      layer.forward(x, set.at(turn), plans[turn % plans.size()], y, workspace);
    } else {
      layer.forward(x, set.at(turn), y, workspace);
    }
    benchmark::DoNotOptimize(y.data());
    ++turn;
  };
  run();  // Takes the workspace's memory.
  const double flop = shape.forward_flop(tokens);
  const double bytes = set.mean_touched * bank_bytes(shape, 1, sizeof(typename Bank::Storage));
  const moe::MachineLimits limits = measure_against_limits(
      state, {.tokens = static_cast<double>(tokens), .flop = flop, .weight_bytes = bytes}, run);
  // What the layer says of itself, against what the shape says and against the time.
  double explained_flop = 0;
  double explained_bytes = 0;
  const auto count = static_cast<double>(set.routings.size());
  for (const moe::Routing<float>& routing : set.routings) {
    const moe::Explanation explained = layers[0].explain(routing, limits);
    explained_flop += explained.flop / count;
    explained_bytes += explained.weight_bytes / count;
    state.counters["explained_ms"] += explained.roofline_seconds() * 1e3 / count;
  }
  // One copy of the bank serves for it: a small one stays in the cache, for both that are compared.
  // With fewer rows, weights would have to come from memory anew each time.
  if (!is_planned && tokens >= 1024) compare(state, layers[0], shape, tokens, skew);
  if (std::abs(explained_flop / flop - 1) > 1e-9 || std::abs(explained_bytes / bytes - 1) > 1e-9)
    state.SkipWithError("the layer explains other work than its shape says");
}

template <class Bank>
void dense(benchmark::State& state, const Shape& shape, Index tokens) {
  using Storage = typename Bank::Storage;
  const std::string key = std::string("dense/") + shape.name + "/" + name_of<Storage>();
  const double bytes = bank_bytes(shape, shape.top_k, sizeof(Storage));
  const auto& banks = Kept::get<std::vector<Bank>>(key, [&] {
    std::vector<Bank> copies;
    for (std::size_t i = 0; i < copies_needed(bytes); ++i)
      copies.push_back(dense_bank<Bank>(shape));
    return copies;
  });
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::DispatchPlan plan;
  moe::make_full_plan(tokens, 1, plan);
  moe::Scratch scratch;
  std::size_t turn = 0;
  const auto run = [&] {
    banks[turn++ % banks.size()].forward({x, plan}, y, scratch);
    benchmark::DoNotOptimize(y.data());
  };
  run();
  measure_against_limits(state,
                         {.tokens = static_cast<double>(tokens),
                          .flop = shape.forward_flop(tokens),
                          .weight_bytes = bytes},
                         run);
}

template <class Bank>
void register_forward(const Shape& shape, const char* weights) {
  for (const Index tokens : token_counts)
    add_benchmark(
        label("forward", shape, weights, tokens), benchmark::kMillisecond,
        [=](benchmark::State& state) { forward<Bank>(state, shape, tokens, Skew::uniform); });
}

template <class Bank>
void register_skews(const Shape& shape, const char* weights) {
  const std::pair<const char*, Skew> skews[] = {
      {"balanced", Skew::balanced}, {"zipf", Skew::zipf}, {"same", Skew::same}};
  for (const auto& [name, skew] : skews)
    for (const Index tokens : {Index{64}, Index{1024}})
      add_benchmark(
          label(std::string("skew/") + name, shape, weights, tokens), benchmark::kMillisecond,
          [=, skew = skew](benchmark::State& state) { forward<Bank>(state, shape, tokens, skew); });
}

template <template <class, class> class Bank>
void register_with(const Shape& shape) {
  register_forward<Bank<float, float>>(shape, "f32");
  if (std::string(shape.name) == "olmoe-1b-7b")
    add_benchmark(label("forward", shape, "f32", 16384), benchmark::kMillisecond,
                  [=](benchmark::State& state) {
                    forward<Bank<float, float>>(state, shape, 16384, Skew::uniform);
                  });
  register_skews<Bank<float, float>>(shape, "f32");
  for (const Index tokens : token_counts)
    add_benchmark(
        label("dense", shape, "f32", tokens), benchmark::kMillisecond,
        [=](benchmark::State& state) { dense<Bank<float, float>>(state, shape, tokens); });
  register_forward<Bank<float, moe::bfloat16>>(shape, "bf16");
  register_forward<Bank<float, moe::half>>(shape, "f16");
}

}  // namespace

void register_layer(const Shape& shape) {
  if (shape.gating == Gating::gated) {
    register_with<moe::SwiGluExperts>(shape);
  } else {
    register_with<moe::ReluExperts>(shape);
  }
}

void register_many_experts() {
  constexpr Index tokens = 16384;  // 64 rows an expert.
  const Shape& shape = many_experts;
  add_benchmark(label("forward", shape, "f32", tokens), benchmark::kMillisecond,
                [=](benchmark::State& state) {
                  forward<moe::SwiGluExperts<float>>(state, shape, tokens, Skew::balanced);
                });
  add_benchmark(label("experts", shape, "f32", tokens), benchmark::kMillisecond,
                [=](benchmark::State& state) {
                  forward<moe::SwiGluExperts<float>>(state, shape, tokens, Skew::balanced, true);
                });
}

}  // namespace benchmarks
