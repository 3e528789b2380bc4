// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The layers that are measured, and the routings that they are measured with.
#pragma once

#include <chrono>
#include <cstdint>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

namespace benchmarks {

enum class Gating { gated, plain };

/// One MoE layer of a published model. Gated experts use SiLU, plain ones ReLU.
struct Shape {
  const char* name;
  moe::Index d_model;
  moe::Index d_ff;
  moe::Index num_experts;
  moe::Index top_k;
  Gating gating = Gating::gated;

  moe::Index weights_per_expert() const {
    return (gating == Gating::gated ? 3 : 2) * d_model * d_ff;
  }
};

inline const std::vector<Shape> shapes{
    {"mixtral-8x7b", 4096, 14336, 8, 2}, {"qwen3-30b-a3b", 2048, 768, 128, 8},
    {"olmoe-1b-7b", 2048, 1024, 64, 8},  {"switch-base-64", 768, 3072, 64, 1, Gating::plain},
    {"small", 512, 1024, 8, 2},
};

inline const std::vector<moe::Index> token_counts{1, 4, 16, 64, 256, 1024};

inline std::string label(const char* what, const Shape& shape, moe::Index tokens) {
  return std::string(what) + "/" + shape.name + "/f32/T:" + std::to_string(tokens);
}

/// Sends every token to K distinct experts, all equally likely, with weights of 1 / K.
inline moe::Routing<float> uniform_routing(const Shape& shape, moe::Index tokens,
                                           std::uint64_t seed) {
  moe::Routing<float> routing;
  routing.resize(tokens, shape.num_experts, shape.top_k,
                 {.keep_logits = false, .keep_scores = false});
  std::vector<moe::ExpertIndex> deck(static_cast<std::size_t>(shape.num_experts));
  std::iota(deck.begin(), deck.end(), 0);
  std::uint64_t position = 0;
  for (moe::Index t = 0; t < tokens; ++t) {
    for (moe::Index k = 0; k < shape.top_k; ++k) {
      const double draw = moe::detail::uniform(seed, position++);
      const auto left = static_cast<double>(shape.num_experts - k);
      std::swap(deck[static_cast<std::size_t>(k)],
                deck[static_cast<std::size_t>(k + static_cast<moe::Index>(draw * left))]);
      routing.experts(t, k) = deck[static_cast<std::size_t>(k)];
      routing.weights(t, k) = 1.0F / static_cast<float>(shape.top_k);
    }
  }
  return routing;
}

/// Experts that get at least one token.
inline moe::Index touched_experts(const moe::Routing<float>& routing) {
  moe::Index touched = 0;
  for (const moe::Index count : moe::metrics::expert_load(routing)) touched += count > 0 ? 1 : 0;
  return touched;
}

/// What consecutive iterations use in turn: with one routing only, the few experts that a small
/// batch touches would stay in the cache.
struct RoutingSet {
  static constexpr std::size_t count = 16;
  std::vector<moe::Routing<float>> routings;
  std::vector<double> weight_bytes;  // of the experts that each touches

  RoutingSet(const Shape& shape, moe::Index tokens) {
    for (std::uint64_t seed = 1; seed <= count; ++seed) {
      routings.push_back(uniform_routing(shape, tokens, seed));
      weight_bytes.push_back(
          static_cast<double>(touched_experts(routings.back()) * shape.weights_per_expert()) *
          sizeof(float));
    }
  }
};

/// Counts amounts by the second of real time. The clock starts here and stops at the first
/// `per_second`. Google Benchmark's own rates are of the main thread's processor time, unless every
/// name were to end in "/real_time".
class Rates {
 public:
  explicit Rates(benchmark::State& state) : state_(state) {}

  void per_second(const char* name, double amount) {
    if (seconds_ == 0)
      seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    state_.counters[name] = benchmark::Counter(amount / seconds_);
  }

 private:
  benchmark::State& state_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double seconds_ = 0;
};

/// Registers `run(state, shape, tokens)` for every number of tokens.
template <class Run>
void register_all(const char* what, const Shape& shape, benchmark::TimeUnit unit, Run run) {
  for (const moe::Index tokens : token_counts)
    benchmark::RegisterBenchmark(label(what, shape, tokens).c_str(), [run, shape, tokens](
                                                                         benchmark::State& state) {
      try {
        run(state, shape, tokens);
      } catch (const std::bad_alloc&) {
        state.SkipWithError("not enough memory");
      }
    })->Unit(unit);
}

void register_layer(const Shape& shape);
void register_dispatch(const Shape& shape);

}  // namespace benchmarks
