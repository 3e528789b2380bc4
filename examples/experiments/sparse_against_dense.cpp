// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How many fewer steps, and how much less time, does a sparse model need for the loss of a dense
// one of the same active width?
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "experiments/experiment.hpp"

namespace {

using experiments::Experiment;
using experiments::LogEntry;
using experiments::Spread;
using experiments::Variant;
using language_model::training::Balance;
using moe::Index;
using Run = std::vector<LogEntry>;

/// The entry at which a run's evaluation first reaches a loss, with step and seconds between two
/// evaluations by the straight line; infinite if it never does.
struct Reached {
  double step = std::numeric_limits<double>::infinity();
  double seconds = std::numeric_limits<double>::infinity();
};

Reached reach(const Run& run, double loss) {
  const LogEntry* before = nullptr;
  for (const LogEntry& entry : run) {
    if (entry.evaluation < 0) continue;
    if (entry.evaluation <= loss) {
      if (before == nullptr) return {static_cast<double>(entry.step), entry.seconds};
      const double share = (before->evaluation - loss) / (before->evaluation - entry.evaluation);
      return {static_cast<double>(before->step) +
                  share * static_cast<double>(entry.step - before->step),
              before->seconds + share * (entry.seconds - before->seconds)};
    }
    before = &entry;
  }
  return {};
}

void run(const Experiment& experiment) {
  Variant sparse{"sparse, 2 of 8 experts", "sparse", Experiment::mixtral(), experiment.options()};
  Variant dense{"dense, as wide as 2 experts", "dense", Experiment::mixtral(), experiment.options(),
                true};
  dense.options.balance = Balance::none;
  const auto results = experiment.run({sparse, dense}, std::max<Index>(1, experiment.steps() / 40));
  const double goal = spread_of(results[1], experiments::final_loss).mean;
  std::vector<std::vector<std::string>> rows;
  for (const auto& result : results) {
    const Spread step = spread_of(result, [&](const Run& run) { return reach(run, goal).step; });
    const Spread seconds =
        spread_of(result, [&](const Run& run) { return reach(run, goal).seconds; });
    rows.push_back(
        {result.name, text_of(spread_of(result, experiments::final_loss), 3),
         text_of(spread_of(result, [](const Run& run) { return run.back().seconds; }), 0),
         std::isfinite(step.mean) ? text_of(step, 0) : "not by every seed",
         std::isfinite(seconds.mean) ? text_of(seconds, 0) : "not by every seed"});
  }
  experiment.write_table({"model", "validation loss, nats per byte", "training time, s",
                          "steps to the dense model's loss", "seconds to it"},
                         rows);
  experiment.plot(
      "loss", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1);
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors("sparse_against_dense", [&] {
    run(experiments::Experiment(argc, argv, "sparse_against_dense", 1500));
  });
}
