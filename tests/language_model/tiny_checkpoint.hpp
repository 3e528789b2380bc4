// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints of a few random weights, written to a folder of their own.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/core/types.hpp>

#include "support/safetensors_writer.hpp"

namespace language_model {

using test_support::TemporaryFolder;

/// Tensors by name and a configuration. Every tensor that `add` makes is random.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(nlohmann::json config) : config_(std::move(config)) {}

  /// Values are normal with a deviation of about 1/sqrt(columns), around `mean`.
  void add(const std::string& name, const std::vector<moe::Index>& shape, double mean = 0) {
    const auto fan_in = static_cast<double>(shape.back());
    std::normal_distribution<double> normal(mean, shape.size() == 1 ? 0.3 : 1 / std::sqrt(fan_in));
    const auto size =
        std::accumulate(shape.begin(), shape.end(), moe::Index{1}, std::multiplies<>());
    Tensor& tensor = tensors_[name];
    tensor.shape = shape;
    for (moe::Index i = 0; i < size; ++i) tensor.values.push_back(normal(generator_));
  }

  void remove(const std::string& name) { tensors_.erase(name); }

  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  const std::vector<double>& values(const std::string& name) const {
    return tensors_.at(name).values;
  }
  const nlohmann::json& config() const { return config_; }
  nlohmann::json& config() { return config_; }

  /// Writes model.safetensors and config.json.
  void write(const TemporaryFolder& folder) const {
    test_support::SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors_)
      writer.add(name, "F64", tensor.shape,
                 {reinterpret_cast<const char*>(tensor.values.data()),
                  tensor.values.size() * sizeof(double)});
    folder.write("model.safetensors", writer.bytes());
    folder.write("config.json", config_.dump());
  }

 private:
  struct Tensor {
    std::vector<moe::Index> shape;
    std::vector<double> values;
  };

  std::mt19937_64 generator_{7};
  std::map<std::string, Tensor> tensors_;
  nlohmann::json config_;
};

}  // namespace language_model
