// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See checkpoint.hpp.
#include "language_model/training/checkpoint.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include <moe/io/safetensors_writer.hpp>
#include <moe/io/tensors.hpp>

#include "language_model/bytes.hpp"

namespace language_model::training {
namespace {

namespace fs = std::filesystem;

constexpr const char* folder_prefix = "step-";
constexpr const char* optimizer_folder = "optimizer";  // So that the model's file is alone in its.

/// The step in a checkpoint's name, or none.
std::optional<Index> step_of(const std::string& name) {
  const std::string prefix = folder_prefix;
  if (!name.starts_with(prefix)) return std::nullopt;
  Index step = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
  if (error != std::errc() || stop != end) return std::nullopt;
  return step;
}

void write(const fs::path& path, const std::string& bytes) {
  OutputFile file(path.string());
  file.commit(bytes);
}

}  // namespace

RunFolder::RunFolder(std::string path) : path_(std::move(path)) {
  fs::create_directories(path_);
}

std::string RunFolder::checkpoint(Index step) const {
  return file(folder_prefix + std::to_string(step));
}

std::optional<Index> RunFolder::latest() const {
  std::optional<Index> latest;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    const std::optional<Index> step = step_of(entry.path().filename().string());
    if (step && entry.is_directory()) latest = std::max(latest.value_or(*step), *step);
  }
  return latest;
}

void RunFolder::save(Index step, const nlohmann::json& config, const nlohmann::json& run,
                     const TrainableModel<float>& model, const Parameters<float>& parameters,
                     const AdamW<float>& optimizer) const {
  const fs::path partial = file("partial");
  const auto remove = [](const fs::path& path) {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  };
  remove(partial);
  fs::create_directories(partial);
  try {
    moe::io::SafetensorsWriter weights;
    weights.metadata("config", config.dump());
    weights.metadata("step", std::to_string(step));
    model.save([&](const std::string& name, const Matrix<float>& values, bool is_vector) {
      if (is_vector) {
        weights.add_vector(name, values);
      } else {
        weights.add(name, values);
      }
    });
    write(partial / "model.safetensors", weights.bytes());
    moe::io::SafetensorsWriter state;
    state.metadata("step", std::to_string(step));
    state.metadata("run", run.dump());
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto& [first, second] = optimizer.moments()[i];
      const auto add = [&](const char* prefix, const std::vector<float>& values) {
        state.add(prefix + parameters[i].name, "F32", {static_cast<Index>(values.size())},
                  {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
      };
      add("first.", first);
      add("second.", second);
    }
    fs::create_directories(partial / optimizer_folder);
    write(partial / optimizer_folder / "moments.safetensors", state.bytes());
    remove(checkpoint(step));
    fs::rename(partial, checkpoint(step));
    sync(path_);  // before the last one goes
  } catch (...) {
    remove(partial);
    throw;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    const std::optional<Index> other = step_of(entry.path().filename().string());
    if (other && *other != step) remove(entry.path());
  }
}

void RunFolder::load(Index step, const nlohmann::json& run, const Parameters<float>& parameters,
                     AdamW<float>& optimizer) const {
  const auto tensors = moe::io::Tensors::open(checkpoint(step) + "/" + optimizer_folder);
  const auto entry = tensors.metadata().find("run");
  const nlohmann::json saved =
      entry == tensors.metadata().end() ? nlohmann::json() : nlohmann::json::parse(entry->second);
  if (saved != run) {
    std::string differing;
    for (const auto& [key, value] : run.items())
      if (!saved.is_object() || !saved.contains(key) || saved[key] != value)
        differing += (differing.empty() ? "" : ", ") + key;
    throw std::invalid_argument(checkpoint(step) + " is of a run with another " +
                                (differing.empty() ? "description" : differing));
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto& [first, second] = optimizer.moments()[i];
    const auto read = [&](const std::string& name, std::vector<float>& to) {
      const Vector<float> values = tensors.vector<float>(name, static_cast<Index>(to.size()));
      std::copy_n(values.data(), to.size(), to.begin());
    };
    read("first." + parameters[i].name, first);
    read("second." + parameters[i].name, second);
  }
}

}  // namespace language_model::training
