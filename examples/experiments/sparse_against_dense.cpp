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
using experiments::Result;
using experiments::Run;
using experiments::Variant;
using language_model::training::Balance;
using moe::Index;

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

/// Mean and deviation of the factors of the seeds that reached the goal (the others have 0), and
/// how many did.
std::string text_of_factors(const std::vector<double>& factors) {
  std::vector<double> reached;
  for (const double factor : factors)
    if (factor > 0) reached.push_back(factor);
  if (reached.empty()) return "never";
  std::string text = text_of(experiments::spread_of(reached), 2);
  if (reached.size() < factors.size())
    text += " (" + std::to_string(reached.size()) + " of " + std::to_string(factors.size()) + ")";
  return text;
}

void run(const Experiment& experiment) {
  Variant sparse{"sparse, 2 of 8 experts", "sparse", Experiment::mixtral(), experiment.options()};
  Variant dense{"dense, as wide as 2 experts", "dense", Experiment::mixtral(), experiment.options(),
                true};
  dense.options.balance = Balance::none;
  const auto seconds_of = [](const Run& run) { return run.back().seconds; };
  // As long as the dense model of the same seed was trained just before, with a learning rate that
  // falls within that time.
  Variant timed = sparse;
  timed.name = "sparse, in the dense model's time";
  timed.folder = "sparse-timed";
  constexpr Index evaluations = 40;
  timed.steps = [&](const std::vector<Result>& before) {
    const double share =
        seconds_of(before[1].runs.back()) / seconds_of(before[0].runs.back()) / evaluations;
    // Whole parts between evaluations, so that the seeds have as many points.
    return std::max<Index>(1, std::lround(static_cast<double>(experiment.steps()) * share)) *
           std::min<Index>(evaluations, experiment.steps());
  };
  const auto results = experiment.run({sparse, dense, timed}, evaluations);
  std::vector<std::vector<std::string>> rows;
  rows.reserve(results.size());
  for (const auto& result : results) {
    std::vector<double> fewer_steps;
    std::vector<double> less_time;
    for (std::size_t seed = 0; seed < result.runs.size(); ++seed) {
      const Run& dense_run = results[1].runs[seed];
      const Reached reached = reach(result.runs[seed], experiments::final_loss(dense_run));
      fewer_steps.push_back(static_cast<double>(dense_run.back().step) / reached.step);
      less_time.push_back(dense_run.back().seconds / reached.seconds);
    }
    const auto steps_of = [](const Run& run) { return static_cast<double>(run.back().step); };
    rows.push_back({result.name, text_of(spread_of(result, steps_of), 0),
                    text_of(spread_of(result, experiments::final_loss), 3),
                    text_of(spread_of(result, seconds_of), 0), text_of_factors(fewer_steps),
                    text_of_factors(less_time)});
  }
  experiment.write_table(
      {"model", "steps", "validation loss, nats per byte", "training time, s",
       "times fewer steps to the dense model's last loss", "times less time to it"},
      rows);
  experiment.plot(
      "loss_by_time", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1, experiments::Axis::seconds);
  experiment.plot(
      "loss", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1);
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors("sparse_against_dense", [&] {
    run(experiments::Experiment(argc, argv, "sparse_against_dense", 1200));
  });
}
