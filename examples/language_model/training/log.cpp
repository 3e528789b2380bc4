// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See log.hpp.
#include "language_model/training/log.hpp"

#include <cerrno>
#include <filesystem>
#include <sstream>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include <moe/core/contracts.hpp>
#include <moe/io/json.hpp>

#include "language_model/bytes.hpp"

namespace language_model::training {
namespace {

nlohmann::json to_json(const LogEntry& entry) {
  nlohmann::json json = {{"step", entry.step},
                         {"loss", entry.loss},
                         {"balance_loss", entry.balance_loss},
                         {"z_loss", entry.z_loss},
                         {"gradient_norm", entry.gradient_norm},
                         {"learning_rate", entry.learning_rate},
                         {"max_violation", entry.max_violation},
                         {"dead_experts", entry.dead_experts},
                         {"dropped", entry.dropped},
                         {"tokens_per_second", entry.tokens_per_second},
                         {"seconds", entry.seconds},
                         {"loads", entry.loads}};
  if (entry.evaluation >= 0) json["evaluation"] = entry.evaluation;
  return json;
}

LogEntry from_json(const nlohmann::json& json) {
  LogEntry entry;
  const auto read = [&](const char* key, auto& value) { json.at(key).get_to(value); };
  read("step", entry.step);
  read("loss", entry.loss);
  read("balance_loss", entry.balance_loss);
  read("z_loss", entry.z_loss);
  read("gradient_norm", entry.gradient_norm);
  read("learning_rate", entry.learning_rate);
  read("max_violation", entry.max_violation);
  read("dead_experts", entry.dead_experts);
  read("dropped", entry.dropped);
  read("tokens_per_second", entry.tokens_per_second);
  read("seconds", entry.seconds);
  read("loads", entry.loads);
  if (json.contains("evaluation")) read("evaluation", entry.evaluation);
  return entry;
}

/// A file of this text, complete before an older one goes, to which is added from now on.
void open(const std::string& path, const std::string& text, std::ofstream& stream) {
  OutputFile(path).commit(text);
  stream.open(path, std::ios::app);
  if (!stream) throw std::system_error(errno, std::generic_category(), path);
}

void check(const std::string& path, const std::ofstream& stream) {
  if (!stream) throw std::system_error(errno != 0 ? errno : EIO, std::generic_category(), path);
}

/// A line to each.
void write(const LogEntry& entry, std::ostream& csv, std::ostream& json) {
  csv << entry.step << ',' << entry.loss << ',' << entry.balance_loss << ',' << entry.z_loss << ','
      << entry.gradient_norm << ',' << entry.learning_rate << ',' << entry.max_violation << ','
      << entry.dead_experts << ',' << entry.dropped << ',' << entry.tokens_per_second << ','
      << entry.seconds << ',';
  if (entry.evaluation >= 0) csv << entry.evaluation;
  csv << std::endl;
  json << to_json(entry).dump() << std::endl;
}

}  // namespace

Log::Log(std::string csv_path, std::string json_path, Index step)
    : csv_path_(std::move(csv_path)), json_path_(std::move(json_path)) {
  if (step > 0 && std::filesystem::exists(json_path_)) {
    std::ifstream before(json_path_);
    Index number = 0;
    for (std::string line; std::getline(before, line);) {
      ++number;
      // A run that was cut off may have left half a line, of a step that is done again.
      const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
      if (json.is_discarded()) break;
      try {
        entries_.push_back(from_json(json));
      } catch (const nlohmann::json::exception& error) {
        throw moe::FormatError(json_path_, "line " + std::to_string(number), 0, error.what());
      }
      if (entries_.back().step > step) {
        entries_.pop_back();
        break;
      }
    }
  }
  std::ostringstream csv;
  csv << "step,loss,balance_loss,z_loss,gradient_norm,learning_rate,max_violation,dead_experts,"
         "dropped,tokens_per_second,seconds,evaluation\n";
  std::ostringstream json;
  for (const LogEntry& entry : entries_) write(entry, csv, json);
  open(csv_path_, csv.str(), csv_);
  open(json_path_, json.str(), json_);
}

void Log::add(const LogEntry& entry) {
  entries_.push_back(entry);
  errno = 0;
  write(entry, csv_, json_);
  check(csv_path_, csv_);
  check(json_path_, json_);
}

}  // namespace language_model::training
