// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See run_case.hpp.
#include "conformance/run_case.hpp"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <stdexcept>

#include "conformance/comparison.hpp"
#include "conformance/golden_case.hpp"
#include "conformance/run_in.hpp"

namespace conformance {

nlohmann::json read_index(const std::string& folder) {
  std::ifstream file(std::filesystem::path(folder) / "index.json");
  if (!file) throw std::runtime_error(folder + " has no index.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  nlohmann::json index = nlohmann::json::parse(
      std::regex_replace(text, std::regex(":\\s*(NaN|-?Infinity)"), ": null"));
  if (index.at("format") != "moe-golden-1") throw std::runtime_error("unknown format of the index");
  return index;
}

Verdict run_case(const std::string& folder, std::string name, const nlohmann::json& entry) {
  Verdict verdict;
  std::string result;
  const auto attempt = [&](const char* precision, auto&& compare) {
    std::string summary;
    try {
      const Comparison comparison = compare();
      verdict.passed = verdict.passed && comparison.passed();
      summary = comparison.summary();
    } catch (const std::exception& error) {
      verdict.passed = false;
      summary = error.what();
    }
    result += std::string(precision) + " " + summary;
  };
  try {
    const GoldenCase golden(
        (std::filesystem::path(folder) / entry.at("file").get<std::string>()).string(), entry);
    name = golden.name();
    attempt("double", [&] { return run_in_double(golden); });
    attempt("; float", [&] { return run_in_float(golden); });
  } catch (const std::exception& error) {
    verdict.passed = false;
    result = error.what();
  }
  name.resize(std::max<std::size_t>(name.size(), 34), ' ');
  verdict.line = (verdict.passed ? "ok   " : "FAIL ") + name + " " + result;
  return verdict;
}

}  // namespace conformance
