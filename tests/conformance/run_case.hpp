// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Running one case in both precisions, whatever its family.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace conformance {

/// The folder's index. Numbers that JSON has no form for, which Python writes for cases without
/// tokens, become null.
nlohmann::json read_index(const std::string& folder);

/// What a case gave.
struct Verdict {
  bool passed = true;
  std::string line;
};

/// Runs a case by its name and entry in the index of `folder`.
Verdict run_case(const std::string& folder, std::string name, const nlohmann::json& entry);

}  // namespace conformance
