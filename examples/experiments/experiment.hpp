// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the experiments share: runs of several variants and seeds, tables, pictures.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "language_model/training/log.hpp"
#include "language_model/training/train.hpp"

namespace experiments {

using language_model::training::LogEntry;
using language_model::training::TrainOptions;
using language_model::training::TrainRequest;
using moe::Index;
using Run = std::vector<LogEntry>;

/// The logs of a variant, one for each seed.
struct Result {
  std::string name;
  std::vector<Run> runs;
};

/// A way to train that is compared with others.
struct Variant {
  std::string name;    ///< as tables and pictures say it
  std::string folder;  ///< within the experiment's
  nlohmann::json config;
  TrainOptions options;
  bool dense = false;
};

/// Mean and standard deviation over the seeds (n - 1).
struct Spread {
  double mean = 0;
  double deviation = 0;
};
Spread spread_of(const std::vector<double>& values);
/// `figure(run)` of every seed.
Spread spread_of(const Result& result, const std::function<double(const Run&)>& figure);
/// By how much the last loss of a result is above that of another, seed by seed, since a seed draws
/// the same windows for both, and the same first weights where shapes are the same:
/// "+0.012 ± 0.003", "0" for itself.
std::string loss_above(const Result& result, const Result& base);
/// About the seconds of a step where nothing else slows the machine: the lowest decile of the
/// second halves of all runs, as a neighbour on the same cores makes whole runs take 1.4 times as
/// long.
double step_seconds(const std::vector<Run>& runs);
/// The same for a whole run, in whole seconds.
std::string time_without_neighbours(const Result& result);
/// "1.234 ± 0.005".
std::string text_of(const Spread& spread, int digits);

enum class Axis { steps, seconds };

/// One command: arguments, runs and files.
class Experiment {
 public:
  /// Reads `--out FOLDER`, `--threads N` and, where there are steps, `--steps N`; the folder is
  /// `name` otherwise.
  ///
  /// Throws  std::invalid_argument if an argument is not known or a number is not positive.
  Experiment(int argc, char** argv, std::string name, Index steps);

  Index steps() const noexcept { return steps_; }
  const std::string& folder() const noexcept { return folder_; }

  /// A small Mixtral, and a GLM-4.5 of the same sizes, whose router has sigmoid scores and a
  /// selection bias.
  static nlohmann::json mixtral();
  static nlohmann::json glm4(Index experts, Index choices, Index shared, Index d_ff);
  /// Windows, learning rate and balance that the experiments have in common.
  TrainOptions options() const;

  /// Trains every variant with three seeds on the bundled text and measures it on the bundled
  /// evaluation text `evaluations` times. Runs that are in the folder already are not done again.
  std::vector<Result> run(const std::vector<Variant>& variants, Index evaluations) const;

  /// Prints a table of Markdown, and writes it to table.md.
  void write_table(const std::vector<std::string>& head,
                   const std::vector<std::vector<std::string>>& rows) const;

  /// A figure over the steps or the seconds of training, its mean as a line and its range over the
  /// seeds as a band: <name>.svg and <name>.png. Entries for which it is below 0 are left out;
  /// others are averaged in groups of `group` steps.
  void plot(const std::string& name, const std::string& label, const std::vector<Result>& results,
            const std::function<double(const LogEntry&)>& figure, Index group,
            Axis axis = Axis::steps) const;

 private:
  std::string folder_;
  Index steps_;
};

/// The mean of a figure over the last tenth of a run.
double at_the_end(const Run& run, const std::function<double(const LogEntry&)>& figure);

/// The last evaluation of a run.
double final_loss(const Run& run);

/// Runs main's body and prints what it throws.
int report_errors(const std::string& name, const std::function<void()>& body);

}  // namespace experiments
