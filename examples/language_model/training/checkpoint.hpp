// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints of a training run, from which it goes on.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "language_model/training/adamw.hpp"
#include "language_model/training/model.hpp"

namespace language_model::training {

/// The folder of a run. Its checkpoints are folders `step-<n>` with model.safetensors, under
/// published tensor names and with the configuration, and the optimiser's state. One is written
/// under another name and renamed when it is complete; then older ones go away.
class RunFolder {
 public:
  /// Makes the folder if there is none.
  ///
  /// Throws  std::system_error naming the path.
  explicit RunFolder(std::string path);

  const std::string& path() const noexcept { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  /// The newest checkpoint's step, or none.
  std::optional<Index> latest() const;
  std::string checkpoint(Index step) const;

  /// `run` describes the run and must be the same when it goes on.
  ///
  /// Throws  std::system_error naming the path, with the last checkpoint as it was.
  void save(Index step, const nlohmann::json& config, const nlohmann::json& run,
            const TrainableModel<float>& model, const Parameters<float>& parameters,
            const AdamW<float>& optimizer) const;

  /// Reads the optimiser's state of a step.
  ///
  /// Throws  moe::FormatError if the file does not fit the parameters; std::invalid_argument if it
  ///         is of a run that `run` does not describe, naming what differs.
  void load(Index step, const nlohmann::json& run, const Parameters<float>& parameters,
            AdamW<float>& optimizer) const;

 private:
  std::string path_;
};

}  // namespace language_model::training
