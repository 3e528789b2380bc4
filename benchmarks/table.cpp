// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "table.hpp"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "shapes.hpp"

namespace benchmarks {
namespace {

/// Two or three significant digits.
std::string digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value >= 100 ? "%.0f" : value >= 10 ? "%.1f" : "%.2f", value);
  return text;
}

}  // namespace

bool TableReporter::ReportContext(const Context& /*context*/) {
  return true;
}

void TableReporter::ReportRuns(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    if (run.run_type != Run::RT_Iteration) continue;
    const std::string& name = run.run_name.function_name;
    const std::size_t first = name.find('/');
    const std::size_t second = name.find('/', first + 1);
    const std::string kind = name.substr(0, first);
    const std::string shape = name.substr(first + 1, second - first - 1);
    const long tokens = std::stol(name.substr(name.rfind(':') + 1));
    if (std::find(kinds_.begin(), kinds_.end(), kind) == kinds_.end()) kinds_.push_back(kind);
    if (run.error_occurred) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), run.error_message.c_str());
      is_complete_ = false;
      continue;
    }
    Times& times = times_[kind][shape][tokens];
    const double ms = run.counters.at("median_ms");
    times.milliseconds.push_back(ms);
    times.shares.push_back(run.counters.at("roofline"));
    if (const auto ratio = run.counters.find("times_ours"); ratio != run.counters.end())
      times.ratios.push_back(ratio->second);
    std::fprintf(stderr, "%-48s %10.3f ms\n", name.c_str(), ms);
  }
}

void TableReporter::Finalize() {
  std::printf("limit: %.0f Gflop/s, %.1f GB/s read\n\n", fma_limit().best() / 1e9,
              read_limit().best() / 1e9);
  std::printf("| shape, T |");
  for (const moe::Index t : token_counts) std::printf(" %ld |", static_cast<long>(t));
  std::printf("\n|---|");
  for (std::size_t i = 0; i < token_counts.size(); ++i) std::printf("---|");
  std::printf("\n");
  const auto print = [](const std::string& label, const auto& value) {
    std::printf("| %s |", label.c_str());
    for (const moe::Index t : token_counts) std::printf(" %s |", value(t).c_str());
    std::printf("\n");
  };
  std::vector<double> ratios;         // to the best peer, of every point
  std::vector<double> of_slow_peers;  // of those where the best peer is far from the limit
  for (const Shape& shape : shapes) {
    const auto time = [&](const std::string& kind, moe::Index t) {
      return median(times_[kind][shape.name][t].milliseconds);
    };
    for (const std::string& kind : kinds_) {
      const std::string row = kind == "forward" ? shape.name
                              : kind == "dense" ? "… dense twin"
                                                : "… " + kind.substr(5);
      print(row, [&](moe::Index t) { return time(kind, t) > 0 ? digits(time(kind, t)) : "–"; });
    }
    const auto share = [&](const std::string& kind, moe::Index t) {
      return median(times_[kind][shape.name][t].shares);
    };
    print("… limit",
          [&](moe::Index t) { return digits(share("forward", t) * time("forward", t)); });
    print("… share of the limit", [&](moe::Index t) { return digits(share("forward", t)); });
    // Measured in turn: times of different minutes would compare memory, too.
    print("… faster than the best peer", [&](moe::Index t) {
      std::string best;
      double least = 0;
      for (const std::string& kind : kinds_) {
        const double ratio = median(times_[kind][shape.name][t].ratios);
        if (ratio == 0 || (least != 0 && ratio >= least)) continue;
        least = ratio;
        best = kind;
      }
      if (best.empty()) return std::string();
      ratios.push_back(least);
      if (share(best, t) < 1 / 1.5) of_slow_peers.push_back(least);
      return digits(least) + "x";
    });
  }
  if (ratios.empty()) return;
  std::printf("\nfaster than the best peer: at least %.2fx, %.2fx at the median of %zu points",
              *std::min_element(ratios.begin(), ratios.end()), median(ratios), ratios.size());
  if (!of_slow_peers.empty())
    std::printf("; at least %.2fx at the %zu where that peer takes more than 1.5 of the limit",
                *std::min_element(of_slow_peers.begin(), of_slow_peers.end()),
                of_slow_peers.size());
  std::printf("\n");
}

}  // namespace benchmarks
