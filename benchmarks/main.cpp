// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include "shapes.hpp"

int main(int argc, char** argv) {
  // Shape by shape, so that one layer's weights are in memory at a time.
  for (const benchmarks::Shape& shape : benchmarks::shapes) {
    benchmarks::register_layer(shape);
    benchmarks::register_dispatch(shape);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
