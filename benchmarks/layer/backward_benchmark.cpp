// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Training steps of whole layers.
#include <cstddef>
#include <random>
#include <span>
#include <string>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

template <class Bank>
void backward(benchmark::State& state, const Shape& shape, Index tokens) {
  using Layer = moe::SparseMoe<moe::TopKRouter<float>, Bank>;
  auto& layer = Kept::get<Layer>(std::string("backward/") + shape.name, [&] {
    std::mt19937_64 rng(1);
    return Layer(shape.router(rng), Bank::random(shape.experts(), rng));
  });
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);   // (T, D)
  const Matrix<float> dy = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> y(tokens, shape.d_model);                                 // (T, D)
  Matrix<float> dx(tokens, shape.d_model);                                // (T, D)
  moe::Tape<float> tape;
  auto gradients = layer.gradients();
  const auto run = [&] {
    layer.forward(x, y, tape);
    layer.backward(x, tape, dy, dx, gradients);
    benchmark::DoNotOptimize(dx.data());
  };
  const auto step = [&] {
    const auto weights = layer.experts().values();
    const auto slopes = gradients.experts.values();
    for (std::size_t part = 0; part < weights.size(); ++part) {
      const std::span<float> w = weights[part];
      const std::span<float> g = slopes[part];
      moe::parallel::for_each_block(static_cast<Index>(w.size()), 1 << 16,
                                    [&](Index begin, Index end) {
                                      for (Index i = begin; i < end; ++i) {
                                        const auto at = static_cast<std::size_t>(i);
                                        w[at] -= 1e-6F * g[at];
                                        g[at] = 0;
                                      }
                                    });
    }
  };
  run();  // Takes the memory.
  step();
  const auto weights = static_cast<double>(shape.weights_per_expert());
  const double flop = 3 * shape.forward_flop(tokens);
  // Weights are read forward and backward, their gradients read and written.
  const double bytes = 4 * static_cast<double>(shape.num_experts) * weights * sizeof(float);
  measure_against_limits(
      state, {.tokens = static_cast<double>(tokens), .flop = flop, .weight_bytes = bytes}, run,
      step);
}

}  // namespace

void register_backward(const Shape& shape) {
  for (const Index tokens : {1024, 4096})
    add_benchmark("backward/" + std::string(shape.name) + "/f32/T:" + std::to_string(tokens),
                  benchmark::kMillisecond, [=](benchmark::State& state) {
                    if (shape.gating == Gating::gated) {
                      backward<moe::SwiGluExperts<float>>(state, shape, tokens);
                    } else {
                      backward<moe::ReluExperts<float>>(state, shape, tokens);
                    }
                  });
}

}  // namespace benchmarks
