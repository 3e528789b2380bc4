// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How many fewer steps, and how much less time, does a sparse model need for the loss of a dense
// one of the same active width?
#include <algorithm>
#include <cmath>
#include <cstddef>
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
  std::vector<std::vector<std::string>> rows;
  for (const auto& result : results) {
    std::vector<double> steps;
    std::vector<double> seconds;
    for (std::size_t seed = 0; seed < result.runs.size(); ++seed) {
      const double goal = experiments::final_loss(results[1].runs[seed]);
      const Reached reached = reach(result.runs[seed], goal);
      steps.push_back(reached.step);
      seconds.push_back(reached.seconds);
    }
    const Spread step = experiments::spread_of(steps);
    const Spread second = experiments::spread_of(seconds);
    rows.push_back(
        {result.name, text_of(spread_of(result, experiments::final_loss), 3),
         text_of(spread_of(result, [](const Run& run) { return run.back().seconds; }), 0),
         std::isfinite(step.mean) ? text_of(step, 0) : "not by every seed",
         std::isfinite(second.mean) ? text_of(second, 0) : "not by every seed"});
  }
  experiment.write_table({"model", "validation loss, nats per byte", "training time, s",
                          "steps to the dense model's last loss, seed by seed", "seconds to it"},
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
