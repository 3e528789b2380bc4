// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Google Benchmark's arguments, and --table for the README's table.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "limits.hpp"
#include "shapes.hpp"
#include "table.hpp"

int main(int argc, char** argv) {
  bool table = false;
  std::vector<std::string> arguments{argv[0]};
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--table") {
      table = true;
    } else {
      arguments.emplace_back(argv[i]);
    }
  }
  if (table)  // What the caller gives comes later, and wins.
    arguments.insert(arguments.begin() + 1, benchmarks::table_filter);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 1;

  // The limits come first, before any bank takes memory, whatever is asked for.
  benchmarks::register_limits();
  benchmarks::fma_limit();
  benchmarks::vnni_limit();
  benchmarks::read_limit();
  // Shape by shape, so that the weights of one are in memory at a time.
  for (const benchmarks::Shape& shape : benchmarks::shapes) {
    benchmarks::register_layer(shape);
    benchmarks::register_quantized(shape);
#if defined(MOE_BENCHMARK_PACKED)
    benchmarks::register_packed(shape);
#endif
    benchmarks::register_backward(shape);
    benchmarks::register_stages(shape);
    benchmarks::register_peers(shape);
  }
  benchmarks::register_deepseek();
#if defined(MOE_BENCHMARK_PACKED)
  benchmarks::register_whole_deepseek();
#endif
  benchmarks::register_many_experts();
  benchmarks::register_many_stages();
  if (table) {
    benchmarks::TableReporter reporter;
    benchmark::RunSpecifiedBenchmarks(&reporter);
    benchmark::Shutdown();
    return reporter.is_complete() ? 0 : 1;
  } else {
    benchmark::RunSpecifiedBenchmarks();
  }
  benchmark::Shutdown();
}
