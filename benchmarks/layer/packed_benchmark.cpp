// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Banks in packed files, of int4-g32. Files are in the system's page cache: what a disk needs
// beside that is not counted.
//
// ready/<shape>/<format>            from the path of a file to a layer that can run; the header is
//                                   checked, pages of weights are not read
// cache/<shape>/<format>/T:<n>      steps of n tokens, routed by Zipf's law, with half of the
//                                   experts in memory: loaded on demand, and asked for one step
//                                   ahead; 16 steps of each kind in turn. Counters: hit_rate, of
//                                   experts that a step on demand needs; resident_ms, demand_ms and
//                                   prefetch_ms, a step's medians; times_resident, of prefetch;
//                                   waiting, the time that forwards waited with prefetch over that
//                                   on demand
// whole/deepseek-v3/<format>/T:<n>  a layer at full size with its router and shared expert, whose
//                                   experts all have the weights of the first; 16 inputs in turn.
//                                   Counter: peak_GiB, the most memory that the layer, its making,
//                                   its inputs and its results have taken so far
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <benchmark/benchmark.h>

#include <moe/io/expert_cache.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;
using Bank = moe::QuantizedExperts<moe::SwiGlu>;
using Router = moe::TopKRouter<float>;

constexpr const char* format_name = "int4-g32";

Router router_of(const Shape& shape) {
  std::mt19937_64 rng(1);
  return shape.router(rng);
}

/// A bank of one expert of that shape, random weights that are quantised.
Bank random_expert(const Shape& shape) {
  moe::ExpertsConfig config = shape.experts();
  config.num_experts = 1;
  std::mt19937_64 rng(1);
  const auto matrices = moe::SwiGluExperts<float>::random(config, rng).expert(0);
  const moe::WeightFormat format = moe::format_of(format_name);
  Bank bank(config, moe::ExpertFormat{format, format});
  bank.set_expert(0, matrices.weights(), {.search = moe::ScaleSearch::nearest});
  return bank;
}

/// A packed file in the folder for temporary ones, gone with this object. All experts have the
/// weights of the first.
struct PackedExample {
  std::string path;

  explicit PackedExample(const Shape& shape)
      : path((std::filesystem::temp_directory_path() /
              ("moe_benchmark_" + std::to_string(::getpid()) + ".safetensors"))
                 .string()) {
    const moe::ExpertFormat format{moe::format_of(format_name), moe::format_of(format_name)};
    const Bank bank = random_expert(shape);
    const std::vector<moe::ExpertFormat> formats(static_cast<std::size_t>(shape.num_experts),
                                                 format);
    moe::io::PackedWriter writer(
        path, {{"experts", moe::io::describe(shape.experts(), formats, moe::SwiGlu{})}});
    for (Index e = 0; e < shape.num_experts; ++e)
      writer.write_expert("experts", e, bank.expert_bytes(0));
    writer.finish();
  }
  PackedExample(const PackedExample&) = delete;
  PackedExample& operator=(const PackedExample&) = delete;
  ~PackedExample() { std::filesystem::remove(path); }
};

const PackedExample& example_of(const Shape& shape) {
  return Kept::get<PackedExample>(std::string("packed/") + shape.name, [&] { return shape; });
}

void ready(benchmark::State& state, const Shape& shape) {
  const std::string& path = example_of(shape).path;
  const Router router = router_of(shape);
  std::vector<double> times;
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const moe::SparseMoe layer{router, moe::io::PackedFile(path).bank<moe::SwiGlu>("experts")};
    times.push_back(seconds_since(start));
    benchmark::DoNotOptimize(layer.d_model());
  }
  state.counters["median_ms"] = median(times) * 1e3;
}

/// The experts of one routing, then those of the next: what a step needs, and what comes.
std::vector<Index> experts_of(const moe::Routing<float>& now, const moe::Routing<float>& next) {
  std::vector<Index> experts;
  for (const moe::Routing<float>* const routing : {&now, &next}) {
    const std::vector<Index> load = moe::metrics::expert_load(*routing);
    for (Index e = 0; e < routing->num_experts; ++e)
      if (load[static_cast<std::size_t>(e)] > 0 &&
          std::find(experts.begin(), experts.end(), e) == experts.end())
        experts.push_back(e);
  }
  return experts;
}

void cached(benchmark::State& state, const Shape& shape, Index tokens) {
  constexpr std::size_t steps = 16;
  constexpr std::size_t least_rounds = 5;
  const moe::io::PackedFile file(example_of(shape).path);
  const moe::SparseMoe resident{router_of(shape), file.bank<moe::SwiGlu>("experts")};
  using Cached = moe::io::CachedExperts<moe::SwiGlu>;
  const double budget = resident.experts().weight_bytes() / 2;
  const moe::SparseMoe on_demand{router_of(shape), Cached(file, "experts", budget)};
  const moe::SparseMoe ahead{router_of(shape), Cached(file, "experts", budget)};
  const RoutingSet set(shape, tokens, Skew::zipf, 64);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::Workspace<float> workspace;
  std::vector<double> times[3];
  const auto run = [&](const auto& layer, bool asks_ahead, std::size_t round,
                       std::vector<double>& to) {
    for (std::size_t i = 0; i < steps; ++i) {
      const std::size_t turn = round * steps + i;
      const Clock::time_point start = Clock::now();
      if (asks_ahead) ahead.experts().prefetch(experts_of(set.at(turn), set.at(turn + 1)));
      layer.forward(x, set.at(turn), y, workspace);
      to.push_back(seconds_since(start));
    }
  };
  std::size_t round = 0;
  const auto once = [&] {
    run(resident, false, round, times[0]);
    run(on_demand, false, round, times[1]);
    run(ahead, true, round, times[2]);
    ++round;
  };
  once();  // Fills the caches.
  const moe::io::CacheCounters before = on_demand.experts().counters();
  const moe::io::CacheCounters before_ahead = ahead.experts().counters();
  for (std::vector<double>& of : times) of.clear();
  for (auto _ : state) once();
  while (round < 1 + least_rounds) once();
  const moe::io::CacheCounters after = on_demand.experts().counters();
  const double waited = after.waiting_seconds - before.waiting_seconds;
  const double waited_ahead =
      ahead.experts().counters().waiting_seconds - before_ahead.waiting_seconds;
  const auto hits = static_cast<double>(after.hits - before.hits);
  const auto misses = static_cast<double>(after.misses - before.misses);
  state.counters["hit_rate"] = hits / (hits + misses);
  state.counters["resident_ms"] = median(times[0]) * 1e3;
  state.counters["demand_ms"] = median(times[1]) * 1e3;
  state.counters["prefetch_ms"] = median(times[2]) * 1e3;
  state.counters["times_resident"] = median(times[2]) / median(times[0]);
  state.counters["waiting"] = waited_ahead / waited;
}

/// A figure of this process's memory, in GiB; 0 where nobody says.
double memory_gib(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != name) continue;
    double kib = 0;
    status >> kib;
    return kib / (1 << 20);
  }
  return 0;
}

/// Begins the peak anew; returns what the process has by now, in GiB: what the limit of memory
/// reads. Infinity where the system does not begin anew.
double start_peak() {
#if defined(__GLIBC__)
  malloc_trim(0);  // What earlier layers had would be used again, and not be counted.
#endif
  std::ofstream clear("/proc/self/clear_refs");
  clear << 5 << std::flush;
  const double before = memory_gib("VmRSS:");
  const bool is_anew = clear && before > 0 && memory_gib("VmHWM:") < 1.05 * before;
  return is_anew ? before : std::numeric_limits<double>::infinity();
}

using Whole = moe::SparseMoe<Router, Bank, Bank>;

void whole(benchmark::State& state, const Shape& shape, Index tokens) {
  const moe::WeightFormat format = moe::format_of(format_name);
  static double before = 0;
  auto& layer = Kept::get<Whole>(std::string("whole/") + shape.name, [&] {
    before = start_peak();
    Bank shared = random_expert(shape);
    Bank bank(shape.experts(), moe::ExpertFormat{format, format});
    for (Index e = 0; e < shape.num_experts; ++e) bank.set_expert_bytes(e, shared.expert_bytes(0));
    moe::RouterWeights<float> weights;
    weights.weight = Matrix<float>::Random(shape.num_experts, shape.d_model) * 0.02F;
    weights.selection_bias = moe::Vector<float>::Random(shape.num_experts) * 0.01F;
    Router router(
        {.d_model = shape.d_model,
         .num_experts = shape.num_experts,
         .top_k = shape.top_k,
         .rule = moe::presets::deepseek_v3({.groups = 8, .groups_kept = 4, .scale = 2.5})},
        std::move(weights));
    return Whole(std::move(router), std::move(bank), moe::SharedExperts<Bank>(std::move(shared)));
  });
  // Several inputs, since the experts of a single one would stay in a large cache.
  constexpr std::size_t inputs = 16;
  std::vector<Matrix<float>> x;  // (T, D) each
  double touched = 0;
  moe::Routing<float> routing;
  for (std::size_t i = 0; i < inputs; ++i) {
    x.push_back(Matrix<float>::Random(tokens, shape.d_model));
    layer.router().route(x.back(), {}, routing);
    touched += static_cast<double>(touched_experts(routing)) / static_cast<double>(inputs);
  }
  Matrix<float> y(tokens, shape.d_model);  // (T, D)
  moe::Workspace<float> workspace;
  std::size_t turn = 0;
  const auto run = [&] { layer.forward(x[turn++ % inputs], y, workspace); };
  run();
  const double flop =
      2 * static_cast<double>(tokens * (shape.top_k + 1) * shape.weights_per_expert());
  const double bytes = (touched + 1) * static_cast<double>(layer.experts().expert_bytes(0).size()) +
                       static_cast<double>(shape.num_experts * shape.d_model) * sizeof(float);
  measure_against_limits(state,
                         {.tokens = static_cast<double>(tokens),
                          .flop = flop,
                          .weight_bytes = bytes,
                          .is_integer = vnni_limit().best() > 0},
                         run);
  if (std::isfinite(before)) state.counters["peak_GiB"] = memory_gib("VmHWM:") - before;
}

}  // namespace

void register_packed(const Shape& shape) {
  if (shape.gating != Gating::gated) return;
  const auto name = [&](const char* what) {
    return std::string(what) + "/" + shape.name + "/" + format_name;
  };
  add_benchmark(name("ready"), benchmark::kMillisecond,
                [=](benchmark::State& state) { ready(state, shape); });
  for (const Index tokens : {1, 4})
    add_benchmark(name("cache") + "/T:" + std::to_string(tokens), benchmark::kMillisecond,
                  [=](benchmark::State& state) { cached(state, shape, tokens); });
}

void register_whole_deepseek() {
  for (const Index tokens : {1, 4, 16, 64, 256})
    add_benchmark(label("whole", deepseek_v3, format_name, tokens), benchmark::kMillisecond,
                  [=](benchmark::State& state) { whole(state, deepseek_v3, tokens); });
}

}  // namespace benchmarks
