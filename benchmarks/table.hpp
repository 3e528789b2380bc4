// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The README's table: milliseconds of our layers, of the peers and of the machine's limit.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

namespace benchmarks {

/// What belongs into the table.
inline constexpr const char* table_filter =
    "--benchmark_filter=^(forward|dense|peer:[a-z]+)/[a-z0-9-]+/f32/T:(1|4|16|64|256|1024)$";

/// Collects medians and prints them as Markdown at the end.
class TableReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;

  /// Whether every peer of every shape has a time: what is missing would flatter.
  bool is_complete() const { return is_complete_; }

 private:
  struct Times {
    std::vector<double> milliseconds;
    std::vector<double> shares;
    std::vector<double> ratios;  // peers: their time over ours, in turn
  };
  /// "forward", "dense" or "peer:name", then shape, then tokens.
  std::map<std::string, std::map<std::string, std::map<long, Times>>> times_;
  bool is_complete_ = true;
  std::vector<std::string> kinds_;  // in order of appearance
};

}  // namespace benchmarks
