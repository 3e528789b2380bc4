// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The command `train`.
#pragma once

#include <CLI/CLI.hpp>

#include "language_model/training/train.hpp"

namespace language_model::training {

struct TrainCommand {
  TrainRequest request;
  bool plots = false;
};

/// Adds the command and its options, which fill `command`.
CLI::App& add_train_command(CLI::App& app, TrainCommand& command);

/// Runs it, with a line of progress where standard error is a terminal, and prints the end.
///
/// Throws  as train and plot.
void run_train(const TrainCommand& command);

}  // namespace language_model::training
