// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The layers that are measured, the routings that they are measured with, and what is reported.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <system_error>
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
  moe::ExpertsConfig experts() const {
    return {.num_experts = num_experts, .d_model = d_model, .d_ff = d_ff};
  }
  /// A multiplication and an addition for each weight of a token's experts.
  double forward_flop(moe::Index tokens) const {
    return 2 * static_cast<double>(tokens * top_k * weights_per_expert());
  }
  moe::TopKRouter<float> router(std::mt19937_64& rng) const {
    return moe::TopKRouter<float>::random(
        {.d_model = d_model, .num_experts = num_experts, .top_k = top_k}, rng);
  }
};

inline const std::vector<Shape> shapes{
    {"mixtral-8x7b", 4096, 14336, 8, 2}, {"qwen3-30b-a3b", 2048, 768, 128, 8},
    {"olmoe-1b-7b", 2048, 1024, 64, 8},  {"switch-base-64", 768, 3072, 64, 1, Gating::plain},
    {"small", 512, 1024, 8, 2},
};

/// Two thousand narrow experts, for what the schedule and the router cost.
inline const Shape many_experts{"many-2048", 512, 64, 2048, 8};

/// In 16 bits its experts would take 22 GB.
inline const Shape deepseek_v3{"deepseek-v3", 7168, 2048, 256, 8};

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

  RoutingSet(const Shape& shape, moe::Index tokens, Skew skew, std::uint64_t most = 16) {
    const std::uint64_t count = skew == Skew::balanced || skew == Skew::same ? 1 : most;
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

/// What one iteration does.
struct Work {
  double tokens = 0;
  double flop = 0;
  double weight_bytes = 0;  // read from memory
  double moved_bytes = 0;   // read and written, wherever they are
  bool is_integer = false;  // operations are of eight bits
};

/// Runs run() for every iteration and reports by the second of real time.
template <class Run>
void measure(benchmark::State& state, const Work& work, const Run& run) {
  const Clock::time_point start = Clock::now();
  for (auto _ : state) run();
  const double seconds = seconds_since(start) / static_cast<double>(state.iterations());
  if (work.tokens > 0) state.counters["tokens/s"] = work.tokens / seconds;
  if (work.flop > 0) state.counters["flops"] = work.flop / seconds;
  const double bytes = work.weight_bytes + work.moved_bytes;
  if (bytes > 0) state.counters["bytes"] = bytes / seconds;
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// The median of the times of b(i) over those of a(i), for i = 0, 1, ...: one after the other, each
/// first in every other pair, since a machine that is shared gives more and less from one second to
/// the next. Five pairs, then as many as a second holds.
template <class A, class B>
double ratio_in_turn(const A& a, const B& b) {
  const auto time = [](const auto& run, std::size_t i) {
    const Clock::time_point start = Clock::now();
    run(i);
    return seconds_since(start);
  };
  std::vector<double> ratios;
  const Clock::time_point start = Clock::now();
  for (std::size_t i = 0; i < 5 || (i < 200 && seconds_since(start) < 1); ++i) {
    const double first = i % 2 == 0 ? time(a, i) : time(b, i);
    const double second = i % 2 == 0 ? time(b, i) : time(a, i);
    ratios.push_back(i % 2 == 0 ? second / first : first / second);
  }
  return median(ratios);
}

/// Measures iterations of run(), held against the machine's limits: what memory gives is measured
/// before and after every 20 ms or more of iterations, of which the better one counts, and what the
/// cores give at best so far. The counters `roofline`, the share of the limit, and `median_ms` are
/// the medians over these samples, 5 at least. Returns the limits over the whole run. `between`
/// runs after each iteration and is not timed.
template <class Run, class Between>
moe::MachineLimits measure_against_limits(benchmark::State& state, const Work& work, const Run& run,
                                          const Between& between) {
  constexpr double seconds_of_sample = 0.02;
  std::vector<double> times;  // of an iteration, by sample
  std::vector<double> reads;
  Limit& peak = work.is_integer ? vnni_limit() : fma_limit();
  moe::MachineLimits limits{peak.best(), 0};
  double read = read_limit().now();
  double seconds = 0;
  double iterations = 0;
  const auto close = [&] {
    const double after = read_limit().now();
    limits.flop_per_second = std::max(limits.flop_per_second, peak.now());
    times.push_back(seconds / iterations);
    reads.push_back(std::max(read, after));
    read = after;
    seconds = iterations = 0;
  };
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    run();
    seconds += seconds_since(start);
    ++iterations;
    state.PauseTiming();
    between();
    if (seconds >= seconds_of_sample) close();
    state.ResumeTiming();
  }
  while (times.size() < 5) {
    while (seconds < seconds_of_sample) {
      const Clock::time_point start = Clock::now();
      run();
      seconds += seconds_since(start);
      ++iterations;
      between();
    }
    close();
  }
  std::vector<double> shares;
  for (std::size_t i = 0; i < times.size(); ++i)
    shares.push_back(std::max(work.weight_bytes / reads[i], work.flop / limits.flop_per_second) /
                     times[i]);
  limits.bytes_per_second = median(reads);
  const double time = median(times);
  state.counters["tokens/s"] = work.tokens / time;
  state.counters["flops"] = work.flop / time;
  state.counters["bytes"] = work.weight_bytes / time;
  state.counters["limit_bytes"] = limits.bytes_per_second;
  state.counters["median_ms"] = time * 1e3;
  state.counters["roofline"] = median(shares);
  // Against the best that the machine has given so far.
  state.counters["roofline_of_best"] =
      std::max(work.weight_bytes / read_limit().best(), work.flop / peak.best()) / time;
  return limits;
}

template <class Run>
moe::MachineLimits measure_against_limits(benchmark::State& state, const Work& work,
                                          const Run& run) {
  return measure_against_limits(state, work, run, [] {});
}

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
    } catch (const std::system_error& error) {  // Such as a full disk.
      state.SkipWithError(error.what());
    }
  })->Unit(unit);
}

void register_layer(const Shape& shape);
void register_quantized(const Shape& shape);
void register_packed(const Shape& shape);
void register_deepseek();
void register_whole_deepseek();
void register_stages(const Shape& shape);
void register_peers(const Shape& shape);
void register_many_experts();
void register_many_stages();

/// backward/<shape>/f32/T:<tokens>  a forward with a tape and its backward, with new weights each
///                                  time, counted as three times the forward's operations
void register_backward(const Shape& shape);

}  // namespace benchmarks
