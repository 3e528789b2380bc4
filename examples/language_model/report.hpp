// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// An evaluation for people and for programs.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "language_model/evaluate.hpp"

namespace language_model {

/// The figures, then a row for each layer that has experts, with the share of the choices that each
/// expert got in percent and a shade that grows darker with the share.
std::string printed_report(const Evaluation& evaluation);

/// The same figures. Every list below `layers` also stands at the top, one entry a layer.
nlohmann::json json_report(const Evaluation& evaluation);

}  // namespace language_model
