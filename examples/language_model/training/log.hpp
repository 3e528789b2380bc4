// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a training run tells: figures of every step, as CSV and as JSON lines.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include <moe/core/types.hpp>

namespace language_model::training {

using moe::Index;

/// One line. Lists have an entry for each layer that has experts.
struct LogEntry {
  Index step = 0;            ///< from 1 on
  double loss = 0;           ///< nats of a prediction, of the step's windows
  double balance_loss = 0;   ///< mean over the layers, without its coefficient
  double z_loss = 0;         ///< the same
  double gradient_norm = 0;  ///< before it was clipped
  double learning_rate = 0;
  double max_violation = 0;  ///< mean over the layers of the largest load over the mean, minus 1
  double dead_experts = 0;   ///< share of the experts without a choice in this step
  double dropped = 0;        ///< share of the choices
  double tokens_per_second = 0;
  double seconds = 0;      ///< of training since the run began, evaluations left out
  double evaluation = -1;  ///< nats per byte of the evaluation text, if it was measured
  std::vector<std::vector<Index>> loads;  ///< choices of each expert
};

/// Both files of a run, and what is in them.
class Log {
 public:
  /// Begins, or goes on behind the entry of `step`: later ones, of steps that were lost, go away.
  ///
  /// Throws  std::system_error naming the file; moe::FormatError if a line cannot be read.
  Log(std::string csv_path, std::string json_path, Index step);

  /// Throws  std::system_error naming the file.
  void add(const LogEntry& entry);

  const std::vector<LogEntry>& entries() const noexcept { return entries_; }

 private:
  std::string csv_path_;
  std::string json_path_;
  std::vector<LogEntry> entries_;
  std::ofstream csv_;
  std::ofstream json_;
};

}  // namespace language_model::training
