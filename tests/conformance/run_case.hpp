// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Running one case in both precisions, whatever its family.
#pragma once

#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <nlohmann/json.hpp>

#include "conformance/checkpoint_cases.hpp"
#include "conformance/comparison.hpp"
#include "conformance/declarations.hpp"
#include "conformance/golden_case.hpp"
#include "conformance/other_cases.hpp"

namespace conformance {

/// The folder's index. Numbers that JSON has no form for, which Python writes for cases without
/// tokens, become null.
inline nlohmann::json read_index(const std::string& folder) {
  std::ifstream file(std::filesystem::path(folder) / "index.json");
  if (!file) throw std::runtime_error(folder + " has no index.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  nlohmann::json index = nlohmann::json::parse(
      std::regex_replace(text, std::regex(":\\s*(NaN|-?Infinity)"), ": null"));
  if (index.at("format") != "moe-golden-1") throw std::runtime_error("unknown format of the index");
  return index;
}

template <class Scalar>
Comparison run(const GoldenCase& golden) {
  Comparison comparison(golden, std::is_same_v<Scalar, double>);
  const std::string family = golden.family();
  check_declarations(golden);
  if (is_checkpoint_family(family)) {
    run_checkpoint_case<Scalar>(comparison);
  } else if (family == "deepspeed") {
    run_deepspeed<Scalar>(comparison);
  } else if (family == "megablocks") {
    run_megablocks<Scalar>(comparison);
  } else if (family == "flaxformer") {
    run_flaxformer<Scalar>(comparison);
  } else if (family == "expert_choice") {
    run_epfml_expert_choice<Scalar>(comparison);
  } else if (family == "epfml_moe") {
    run_epfml<Scalar>(comparison);
  } else if (family == "shazeer") {
    run_shazeer<Scalar>(comparison);
  } else if (family == "jacobs1991") {
    run_jacobs<Scalar>(comparison);
  } else {
    comparison.fail("the family '" + family + "' is not known");
  }
  if (golden.has("grad_output") && !comparison.has_gradients())
    comparison.fail("the gradients were not compared");
  comparison.check_that_all_is_used(is_checkpoint_family(family) ? golden.weights_prefix() : "");
  return comparison;
}

/// What a case gave.
struct Verdict {
  bool passed = true;
  std::string line;
};

/// Runs a case by its name and entry in the index of `folder`.
inline Verdict run_case(const std::string& folder, std::string name, const nlohmann::json& entry) {
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
    attempt("double", [&] { return run<double>(golden); });
    attempt("; float", [&] { return run<float>(golden); });
  } catch (const std::exception& error) {
    verdict.passed = false;
    result = error.what();
  }
  name.resize(std::max<std::size_t>(name.size(), 34), ' ');
  verdict.line = (verdict.passed ? "ok   " : "FAIL ") + name + " " + result;
  return verdict;
}

}  // namespace conformance
