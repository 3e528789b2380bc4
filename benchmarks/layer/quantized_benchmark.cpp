// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// forward/<shape>/<format>/T:<tokens>  the whole block on a supplied, uniformly random routing,
//                                      with weights quantised to a format; with -widened behind
//                                      its name, activations are not rounded to eight bits
//
// Integer products are held against the peak of eight-bit operations, widened ones against that of
// fused multiply-adds; scales count among the bytes. Further counters: of_reachable, the share of a
// limit whose peak is 0.65 (int8) or 0.5 (four bits) of that; times_f32, of the same layer in
// single precision, in turn.
#include <algorithm>
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

/// Banks of one layer, used in turn. All experts have the weights of the first one, each a copy of
/// its own: what they are makes no difference to the time, but in fp8, where lines of codes with a
/// small one (0.2 % here) take longer.
template <class Bank>
std::vector<Bank>& banks_of(const Shape& shape, const moe::WeightFormat& format) {
  const std::string key = std::string("quantized/") + shape.name + "/" + format_name(format);
  return Kept::get<std::vector<Bank>>(key, [&] {
    const moe::ExpertsConfig config{
        .num_experts = shape.num_experts, .d_model = shape.d_model, .d_ff = shape.d_ff};
    Bank bank(config, moe::ExpertFormat{format, format});
    const auto random = [&](Index outputs, Index inner, std::uint64_t seed) {
      Matrix<float> weights(outputs, inner);
      moe::detail::fill_uniform(weights.data(), weights.size(), inner, seed);
      return weights;
    };
    const Index gated = Bank::is_gated ? shape.d_ff : 0;
    const Matrix<float> gate = random(gated, gated == 0 ? 0 : shape.d_model, 1);
    const Matrix<float> up = random(shape.d_ff, shape.d_model, 2);
    const Matrix<float> down = random(shape.d_model, shape.d_ff, 3);
    bank.set_expert(0, {.gate = gate, .up = up, .down = down},
                    {.search = moe::ScaleSearch::nearest});
    for (Index e = 1; e < shape.num_experts; ++e) bank.set_expert_bytes(e, bank.expert_bytes(0));
    std::vector<Bank> banks;
    const std::size_t copies = copies_needed(bank.weight_bytes());
    for (std::size_t i = 0; i < copies; ++i) {
      banks.push_back(bank);
      if (i > 0) banks.back().set_expert_bytes(0, bank.expert_bytes(0));  // Memory of its own.
    }
    return banks;
  });
}

template <class Bank>
using Layer = moe::SparseMoe<moe::TopKRouter<float>, Bank>;

template <class Bank>
Layer<Bank> layer_with(const Shape& shape, Bank bank) {
  std::mt19937_64 rng(1);
  return {shape.router(rng), std::move(bank)};
}

template <class Bank, class Floats>
void forward(benchmark::State& state, const Shape& shape, const moe::WeightFormat& format,
             moe::ProductKind product, Index tokens) {
  const std::vector<Bank>& banks = banks_of<Bank>(shape, format);
  std::vector<Layer<Bank>> layers;
  for (Bank bank : banks) {  // Copies share the weights.
    bank.set_product(product);
    layers.push_back(layer_with(shape, std::move(bank)));
  }
  const RoutingSet set(shape, tokens, Skew::uniform);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                // (T, D)
  moe::Workspace<float> workspace;
  std::size_t turn = 0;
  const auto run = [&] {
    layers[turn % layers.size()].forward(x, set.at(turn), y, workspace);
    benchmark::DoNotOptimize(y.data());
    ++turn;
  };
  run();  // Takes the workspace's memory.
  const double flop = shape.forward_flop(tokens);
  const Work work{.tokens = static_cast<double>(tokens),
                  .flop = flop,
                  .weight_bytes = set.mean_touched * banks[0].weight_bytes() /
                                  static_cast<double>(shape.num_experts),
                  .is_integer = product == moe::ProductKind::integer &&
                                moe::has_integer_products(format) && vnni_limit().best() > 0};
  measure_against_limits(state, work, run);
  if (!work.is_integer) return;
  const double reachable = (format.code == moe::WeightCode::int8 ? 0.65 : 0.5);
  const double seconds = state.counters["median_ms"] / 1e3;
  state.counters["of_reachable"] = std::max(work.weight_bytes / state.counters["limit_bytes"],
                                            flop / (reachable * vnni_limit().best())) /
                                   seconds;
  if (tokens != 1024 || format.code != moe::WeightCode::int8 || shape.num_experts > 128) return;
  std::mt19937_64 rng(1);
  const auto floats = layer_with(shape, Floats::random(shape.experts(), rng));
  moe::Workspace<float> of_floats;
  state.counters["times_f32"] =
      ratio_in_turn([&](std::size_t i) { floats.forward(x, set.at(i), y, of_floats); },
                    [&](std::size_t i) { layers[0].forward(x, set.at(i), y, workspace); });
}

template <class Activation>
void register_formats(const Shape& shape, const std::vector<std::string>& names) {
  const std::string widened = "-widened";
  for (const std::string& name : names) {
    const bool is_widened = name.ends_with(widened);
    const moe::WeightFormat format =
        moe::format_of(is_widened ? name.substr(0, name.size() - widened.size()) : name);
    const auto product = is_widened ? moe::ProductKind::widened : moe::ProductKind::integer;
    for (const Index tokens : token_counts)
      add_benchmark(
          label("forward", shape, name.c_str(), tokens), benchmark::kMillisecond,
          [=](benchmark::State& state) {
            forward<moe::QuantizedExperts<Activation>, moe::FeedForwardExperts<float, Activation>>(
                state, shape, format, product, tokens);
          });
  }
}

}  // namespace

void register_quantized(const Shape& shape) {
  const std::vector<std::string> names{
      "int8",     "int8-g128", "int8-widened", "int4-g32", "int4-g32-widened",
      "int4-g64", "nl4-g32",   "mxfp4",        "fp8"};
  if (shape.gating == Gating::gated) {
    register_formats<moe::SwiGlu>(shape, names);
  } else {
    register_formats<moe::Relu>(shape, names);
  }
}

void register_deepseek() {
  register_formats<moe::SwiGlu>(deepseek_v3, {"int4-g32"});
}

}  // namespace benchmarks
