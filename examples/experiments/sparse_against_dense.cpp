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
  constexpr Index evaluations = 40;
  auto results = experiment.run({sparse, dense}, evaluations);
  const double seconds[] = {experiments::step_seconds(results[0].runs),
                            experiments::step_seconds(results[1].runs)};
  // As long as the dense model is trained, with a learning rate that falls within that time.
  Variant timed = sparse;
  timed.name = "sparse, in the dense model's time";
  timed.folder = "sparse-timed";
  timed.options.steps = std::max<Index>(
      1, std::lround(static_cast<double>(experiment.steps()) * seconds[1] / seconds[0]));
  timed.options.warmup_steps = std::max<Index>(1, timed.options.steps / 20);
  results.push_back(experiment.run({timed}, evaluations).front());
  for (std::size_t i = 0; i < results.size(); ++i)
    for (Run& run : results[i].runs)
      for (LogEntry& entry : run) entry.seconds = static_cast<double>(entry.step) * seconds[i % 2];
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
    const LogEntry& last = result.runs.front().back();
    rows.push_back({result.name, std::to_string(last.step),
                    text_of(spread_of(result, experiments::final_loss), 3),
                    loss_above(result, results[1]), std::to_string(std::lround(last.seconds)),
                    text_of_factors(fewer_steps), text_of_factors(less_time)});
  }
  experiment.write_table(
      {"model", "steps", "validation loss, nats per byte", "above that of dense",
       "time without neighbours, s", "times fewer steps to the dense model's last loss",
       "times less time to it"},
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
