// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// plan      the counting sort from a routing to a plan
// dispatch  gathering the rows of every expert; bytes are read and written once
// combine   the weighted sum of every token's rows; bytes are read and written once
#include <string>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

double bytes_of_rows(const Shape& shape, Index rows) {
  return static_cast<double>(rows * shape.d_model) * sizeof(float);
}

void plan(benchmark::State& state, const Shape& shape, Index tokens) {
  const moe::Routing<float> routing = uniform_routing(shape, tokens, 1);
  moe::DispatchPlan made;
  Rates rates(state);
  for (auto _ : state) {
    moe::make_plan(routing, {}, made);
    benchmark::DoNotOptimize(made.rows.data());
  }
  rates.per_second("tokens/s", static_cast<double>(state.iterations() * tokens));
}

void dispatch(benchmark::State& state, const Shape& shape, Index tokens) {
  moe::DispatchPlan made;
  moe::make_plan(uniform_routing(shape, tokens, 1), {}, made);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> rows(made.num_rows(), shape.d_model);                    // (N, D)
  Rates rates(state);
  for (auto _ : state) {
    moe::dispatch<float>(x, made, rows);
    benchmark::DoNotOptimize(rows.data());
  }
  rates.per_second("bytes/s", bytes_of_rows(shape, state.iterations() * 2 * made.num_rows()));
}

void combine(benchmark::State& state, const Shape& shape, Index tokens) {
  const moe::Routing<float> routing = uniform_routing(shape, tokens, 1);
  moe::DispatchPlan made;
  moe::make_plan(routing, {}, made);
  const Matrix<float> rows = Matrix<float>::Random(made.num_rows(), shape.d_model);  // (N, D)
  Matrix<float> y(tokens, shape.d_model);                                            // (T, D)
  Rates rates(state);
  for (auto _ : state) {
    moe::combine<float>(rows, made, routing.weights, y);
    benchmark::DoNotOptimize(y.data());
  }
  rates.per_second("bytes/s",
                   bytes_of_rows(shape, state.iterations() * (made.num_rows() + tokens)));
}

}  // namespace

void register_dispatch(const Shape& shape) {
  register_all("plan", shape, benchmark::kMicrosecond, plan);
  register_all("dispatch", shape, benchmark::kMicrosecond, dispatch);
  register_all("combine", shape, benchmark::kMicrosecond, combine);
}

}  // namespace benchmarks
