// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Are many small experts better than few large ones of the same sizes together?
#include <string>
#include <vector>

#include "experiments/experiment.hpp"

namespace {

using experiments::Experiment;
using experiments::LogEntry;
using experiments::Run;
using experiments::Variant;
using language_model::training::Balance;

void run(const Experiment& experiment) {
  std::vector<Variant> variants;
  const auto add = [&](const std::string& name, const std::string& folder,
                       const nlohmann::json& config) {
    Variant variant{name, folder, config, experiment.options()};
    variant.options.balance = Balance::aux;
    // The loss is K where loads are even, so that a coefficient over K presses all alike.
    variant.options.balance_weight *= 2.0 / config["num_experts_per_tok"].get<double>();
    variants.push_back(variant);
  };
  // Of 8 widths of 128 a token passes through 2 in all of them.
  add("2 of 8 experts", "coarse", Experiment::glm4(8, 2, 0, 128));
  add("8 of 32, a quarter as wide", "fine", Experiment::glm4(32, 8, 0, 32));
  add("7 of 31 and a shared one", "shared", Experiment::glm4(31, 7, 1, 32));
  const auto results = experiment.run(variants, 20);
  const auto violation = [](const LogEntry& entry) { return entry.max_violation; };
  std::vector<std::vector<std::string>> rows;
  rows.reserve(results.size());
  for (const auto& result : results)
    rows.push_back(
        {result.name, text_of(spread_of(result, experiments::final_loss), 3),
         loss_above(result, results.front()),
         text_of(
             spread_of(result, [&](const Run& r) { return experiments::at_the_end(r, violation); }),
             2),
         time_without_neighbours(result)});
  experiment.write_table({"experts", "validation loss, nats per byte", "above that of 2 of 8",
                          "MaxVio of a step, last tenth", "time without neighbours, s"},
                         rows);
  experiment.plot(
      "loss", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1);
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors(
      "granularity", [&] { run(experiments::Experiment(argc, argv, "granularity", 900)); });
}
