// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "table.hpp"

#include <algorithm>
#include <cstdio>

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
    // By shares, so that memory which was slower while one of the two ran doesn't count.
    print("… faster than the best peer", [&](moe::Index t) {
      double best = 0;
      for (const std::string& kind : kinds_)
        if (kind.rfind("peer:", 0) == 0) best = std::max(best, share(kind, t));
      return best == 0 ? "" : digits(share("forward", t) / best) + "x";
    });
  }
}

}  // namespace benchmarks
