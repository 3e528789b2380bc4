// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How much do dropped tokens matter?
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "experiments/experiment.hpp"

namespace {

using experiments::Experiment;
using experiments::LogEntry;
using experiments::Run;
using experiments::Variant;
using moe::Index;

void run(const Experiment& experiment) {
  std::vector<Variant> variants;
  for (const double capacity : {1.0, 1.25, 2.0, 0.0}) {
    char name[32];
    std::snprintf(name, sizeof(name), capacity > 0 ? "capacity %.2f" : "no limit", capacity);
    char folder[32];
    std::snprintf(folder, sizeof(folder), "capacity-%.2f", capacity);
    Variant variant{name, folder, Experiment::mixtral(), experiment.options()};
    variant.options.capacity = capacity;
    variants.push_back(variant);
  }
  const auto results = experiment.run(variants, 10);
  const auto dropped = [](const LogEntry& entry) { return 100 * entry.dropped; };
  std::vector<std::vector<std::string>> rows;
  rows.reserve(results.size());
  for (const auto& result : results) {
    const auto mean_drop = [&](const Run& run) {
      double sum = 0;
      for (const LogEntry& entry : run) sum += dropped(entry);
      return sum / static_cast<double>(run.size());
    };
    rows.push_back(
        {result.name, text_of(spread_of(result, mean_drop), 1),
         text_of(spread_of(result, [&](const Run& run) { return dropped(run.back()); }), 1),
         text_of(spread_of(result, experiments::final_loss), 3), loss_above(result, results.back()),
         time_without_neighbours(result)});
  }
  experiment.write_table({"capacity", "dropped choices, %", "at the last step, %",
                          "validation loss without a limit, nats per byte",
                          "above that of no limit", "time without neighbours, s"},
                         rows);
  experiment.plot("dropped", "dropped choices, %", results, dropped,
                  std::max<Index>(1, experiment.steps() / 100));
  experiment.plot(
      "loss", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1);
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors(
      "dropping", [&] { run(experiments::Experiment(argc, argv, "dropping", 900)); });
}
