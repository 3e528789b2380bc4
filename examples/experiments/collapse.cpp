// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Do experts collapse without balancing, and what does each method against it cost?
#include <algorithm>
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

void run(const Experiment& experiment) {
  std::vector<Variant> variants;
  const auto add = [&](const std::string& name, const std::string& folder,
                       const nlohmann::json& config, Balance balance, double z_loss) {
    Variant variant{name, folder, config, experiment.options()};
    variant.options.balance = balance;
    variant.options.z_loss = z_loss;
    variants.push_back(variant);
  };
  const nlohmann::json softmax = Experiment::mixtral();
  const nlohmann::json sigmoid = Experiment::glm4(8, 2, 0, 96);
  add("none", "none", softmax, Balance::none, 0);
  add("Switch loss, of all choices", "switch", softmax, Balance::aux, 0);
  add("importance and load, noise", "noise", softmax, Balance::noise, 0);
  add("z-loss", "z", softmax, Balance::none, 1e-3);
  add("none, sigmoid scores", "sigmoid", sigmoid, Balance::none, 0);
  add("bias, sigmoid scores", "bias", sigmoid, Balance::bias, 0);
  const auto results = experiment.run(variants, 10);

  const auto violation = [](const LogEntry& entry) { return entry.max_violation; };
  const auto dead = [](const LogEntry& entry) { return 100 * entry.dead_experts; };
  std::vector<std::vector<std::string>> rows;
  rows.reserve(results.size());
  for (const auto& result : results)
    rows.push_back(
        {result.name,
         text_of(
             spread_of(result, [&](const Run& r) { return experiments::at_the_end(r, violation); }),
             2),
         text_of(spread_of(result, [&](const Run& r) { return experiments::at_the_end(r, dead); }),
                 1),
         text_of(spread_of(result, experiments::final_loss), 3),
         loss_above(result, results.front())});
  experiment.write_table(
      {"balance", "MaxVio of a step, last tenth", "experts without a token, %, last tenth",
       "validation loss, nats per byte", "above that of none"},
      rows);
  const Index group = std::max<Index>(1, experiment.steps() / 100);
  experiment.plot("max_violation", "MaxVio of a step", results, violation, group);
  experiment.plot("dead_experts", "experts without a token, %", results, dead, group);
  experiment.plot(
      "loss", "validation loss, nats per byte", results,
      [](const LogEntry& entry) { return entry.evaluation; }, 1);
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors(
      "collapse", [&] { run(experiments::Experiment(argc, argv, "collapse", 600)); });
}
