// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs every case of a folder of reference data, in double and float: logits, choices, weights,
// drops, losses and outputs. The data lie in MOE_CONFORMANCE_DIR, or else in the folder that the
// build names. Fails on a case that it cannot interpret. Given a file's name, it writes its lines
// there, too.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "conformance/run_case.hpp"

namespace conformance {
namespace {

/// Cases in the folder that comes with the tests: none may get lost.
constexpr int bundled_cases = 41;

int run_all(const std::string& folder, int least_cases, std::ofstream& log) {
  const auto print = [&](const std::string& line) {
    std::cout << line << std::endl;
    log << line << std::endl;
  };
  const nlohmann::json index = read_index(folder);
  int total = 0;
  int passed = 0;
  std::vector<std::string> files;
  for (const auto& [name, entry] : index.at("cases").items()) {
    if (entry.contains("file") && entry["file"].is_string())
      files.push_back(entry["file"].get<std::string>());
    const Verdict verdict = run_case(folder, name, entry);
    print(verdict.line);
    ++total;
    passed += verdict.passed ? 1 : 0;
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() != ".safetensors") continue;
    if (std::find(files.begin(), files.end(), name) != files.end()) continue;
    print("FAIL " + name + " is not in the index");
    ++total;
  }
  if (total < least_cases)
    print("at least " + std::to_string(least_cases) + " cases were expected");
  print("conformance: " + std::to_string(passed) + "/" + std::to_string(total) + " cases");
  return total >= least_cases && passed == total ? 0 : 1;
}

}  // namespace
}  // namespace conformance

int main(int argc, char** argv) {
  const char* const chosen = std::getenv("MOE_CONFORMANCE_DIR");
  const bool is_chosen = chosen != nullptr && *chosen != '\0';
  std::ofstream log;
  if (argc > 1) log.open(argv[1]);
  try {
    return is_chosen
               ? conformance::run_all(chosen, 1, log)
               : conformance::run_all(MOE_TEST_DATA "/golden", conformance::bundled_cases, log);
  } catch (const std::exception& error) {
    std::cerr << "conformance: " << error.what() << std::endl;
    return 1;
  }
}
