// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The layers that are measured, the routings that they are measured with, and what is reported.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "limits.hpp"

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

/// Two thousand narrow experts, for what the schedule and the router cost.
inline const Shape many_experts{"many-2048", 512, 64, 2048, 8};

inline const std::vector<moe::Index> token_counts{1, 4, 16, 64, 256, 1024};

/// "f32", "bf16", "f16".
template <class Storage>
constexpr const char* name_of() {
  if constexpr (std::is_same_v<Storage, moe::bfloat16>) {
    return "bf16";
  } else if constexpr (std::is_same_v<Storage, moe::half>) {
    return "f16";
  } else {
    return "f32";
  }
}

inline std::string label(const std::string& what, const Shape& shape, const char* weights,
                         moe::Index tokens) {
  return what + "/" + shape.name + "/" + weights + "/T:" + std::to_string(tokens);
}

/// How tokens are spread over the experts.
enum class Skew {
  uniform,   ///< K distinct experts at random
  balanced,  ///< every expert as often as every other
  zipf,      ///< K distinct experts at random, the i-th with odds 1 / i
  same,      ///< all to the first K
};

/// Sends every token to K distinct experts with weights of 1 / K.
inline moe::Routing<float> make_routing(const Shape& shape, moe::Index tokens, Skew skew,
                                        std::uint64_t seed) {
  moe::Routing<float> routing;
  routing.resize(tokens, shape.num_experts, shape.top_k,
                 {.keep_logits = false, .keep_scores = false});
  const auto experts = static_cast<std::size_t>(shape.num_experts);
  std::vector<double> odds(experts);
  std::uint64_t position = 0;
  for (moe::Index t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < experts; ++e)
      odds[e] = skew == Skew::zipf ? 1 / static_cast<double>(e + 1) : 1;
    for (moe::Index k = 0; k < shape.top_k; ++k) {
      std::size_t chosen = 0;
      if (skew == Skew::balanced) {
        chosen = static_cast<std::size_t>((t * shape.top_k + k) % shape.num_experts);
      } else if (skew == Skew::same) {
        chosen = static_cast<std::size_t>(k);
      } else {
        double left =
            moe::detail::uniform(seed, position++) * std::accumulate(odds.begin(), odds.end(), 0.0);
        while (chosen + 1 < experts && (odds[chosen] == 0 || left >= odds[chosen]))
          left -= odds[chosen++];
        while (odds[chosen] == 0) --chosen;  // Where rounding ran past the last.
        odds[chosen] = 0;
      }
      routing.experts(t, k) = static_cast<moe::ExpertIndex>(chosen);
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
  std::vector<moe::Routing<float>> routings;
  double mean_touched = 0;

  RoutingSet(const Shape& shape, moe::Index tokens, Skew skew) {
    const std::uint64_t count = skew == Skew::balanced || skew == Skew::same ? 1 : 16;
    for (std::uint64_t seed = 1; seed <= count; ++seed) {
      routings.push_back(make_routing(shape, tokens, skew, seed));
      mean_touched +=
          static_cast<double>(touched_experts(routings.back())) / static_cast<double>(count);
    }
  }
  const moe::Routing<float>& at(std::size_t turn) const { return routings[turn % routings.size()]; }
};

/// Copies of a bank that together exceed the last-level cache eight times, so that weights come
/// from memory when a benchmark uses them in turn.
inline std::size_t copies_needed(double bank_bytes) {
  return static_cast<std::size_t>(std::ceil(8 * last_level_cache() / bank_bytes));
}

/// What the machine can do now.
inline moe::MachineLimits limits_now() {
  return {fma_limit().now(), read_limit().now()};
}

/// Reports a benchmark by the second of real time. The clock starts here and stops at `report`.
class Report {
 public:
  /// `before`: the limits right before, if it is held against them; those right after are measured
  /// too, and the larger ones count.
  explicit Report(benchmark::State& state, const moe::MachineLimits& before = {})
      : state_(state), limits_(before), start_(std::chrono::steady_clock::now()) {}

  /// What one iteration does; `weight_bytes` are read from memory.
  void operator()(double tokens, double flop, double weight_bytes) {
    const double seconds = seconds_per_iteration();
    state_.counters["tokens/s"] = tokens / seconds;
    if (flop > 0) state_.counters["flops"] = flop / seconds;
    if (weight_bytes > 0) state_.counters["bytes"] = weight_bytes / seconds;
    if (limits_.bytes_per_second == 0) return;
    const moe::MachineLimits after = limits_now();
    limits_.flop_per_second = std::max(limits_.flop_per_second, after.flop_per_second);
    limits_.bytes_per_second = std::max(limits_.bytes_per_second, after.bytes_per_second);
    state_.counters["limit_bytes"] = limits_.bytes_per_second;
    state_.counters["roofline"] =
        std::max(weight_bytes / limits_.bytes_per_second, flop / limits_.flop_per_second) / seconds;
  }

  /// What the benchmark was held against, after the report.
  const moe::MachineLimits& limits() const { return limits_; }

  void bytes(double moved) { state_.counters["bytes"] = moved / seconds_per_iteration(); }

 private:
  double seconds_per_iteration() {
    if (seconds_ == 0)
      seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count() /
                 static_cast<double>(state_.iterations());
    return seconds_;
  }

  benchmark::State& state_;
  moe::MachineLimits limits_;
  std::chrono::steady_clock::time_point start_;
  double seconds_ = 0;
};

/// The last object asked for, kept while consecutive benchmarks ask for the same one: weights of
/// one shape and precision are in memory at a time.
class Kept {
 public:
  template <class Object, class Make>
  static Object& get(const std::string& key, const Make& make) {
    if (key_ != key) {
      object_.reset();  // Before the next one is made: two large banks may not fit.
      key_.clear();
      object_ = std::make_shared<Object>(make());
      key_ = key;
    }
    return *static_cast<Object*>(object_.get());
  }

 private:
  static inline std::string key_;
  static inline std::shared_ptr<void> object_;
};

inline void add_benchmark(const std::string& name, benchmark::TimeUnit unit,
                          std::function<void(benchmark::State&)> run) {
  benchmark::RegisterBenchmark(name.c_str(), [run = std::move(run)](benchmark::State& state) {
    try {
      run(state);
    } catch (const std::bad_alloc&) {
      state.SkipWithError("not enough memory");
    }
  })->Unit(unit);
}

void register_layer(const Shape& shape);
void register_stages(const Shape& shape);
void register_peers(const Shape& shape);
void register_many_experts();
void register_many_stages();

}  // namespace benchmarks
