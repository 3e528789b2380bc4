// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A training run from its texts to its checkpoints.
#pragma once

#include <functional>
#include <string>

#include "language_model/training/log.hpp"
#include "language_model/training/options.hpp"

namespace language_model::training {

struct TrainRequest {
  std::string text;          ///< the file that is learnt
  std::string evaluation;    ///< a file on which the model is measured, or empty
  std::string config;        ///< a config.json, for a model that begins at random
  std::string model;         ///< a checkpoint, to begin from
  bool dense = false;        ///< the configuration's dense twin
  std::string out;           ///< the run's folder
  bool resume = false;       ///< go on from the newest checkpoint there
  Index save_every = 500;    ///< steps between checkpoints; the last step has one anyway
  Index evaluate_every = 0;  ///< steps between evaluations; 0 for the last only
  TrainOptions options;
};

/// Called after every step.
using StepObserver = std::function<void(const LogEntry& entry)>;

/// The learning rate of a step, from 1 on: it rises in `warmup_steps` steps, then falls as a cosine
/// to `final_rate` of itself.
double learning_rate(const TrainOptions& options, Index step);

/// Trains a model and gives the log's entries. A run that was stopped and goes on gives the same
/// checkpoints as one that was not.
///
/// Throws  before any step: std::invalid_argument if a text is shorter than a window or holds what
///         the vocabulary does not, the request makes no sense, or the folder has checkpoints and
///         the run is not to go on, or is of another run; std::system_error naming a file that
///         cannot be read or written; moe::FormatError naming what does not fit in a file.
///         In the midst: std::system_error, with the last checkpoint as it was;
///         std::runtime_error if the loss is no longer finite.
std::vector<LogEntry> train(const TrainRequest& request, const StepObserver& observer = {});

}  // namespace language_model::training
