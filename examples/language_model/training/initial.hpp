// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A model before it has learnt anything.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace language_model::training {

/// A misspelt field would go unseen, and the model would be another.
///
/// Throws  moe::FormatError naming a field that no configuration of its family has.
void check_fields(const nlohmann::json& config, const std::string& source);

/// The bytes of a safetensors file with all tensors of a model of this configuration: matrices are
/// normal with deviation 0.8 / sqrt(inputs), embedding and head with 0.02, norms are 1 and biases
/// 0. The configuration is the file's metadata entry `config`.
///
/// Throws  moe::FormatError naming a field that is missing or absurd; `source` is named in errors.
std::string initial_checkpoint(const nlohmann::json& json, const std::string& source,
                               std::uint64_t seed);

/// The configuration of the model whose layers all have one expert, as wide as those together that
/// a token passes through in a model of `json`.
///
/// Throws  as above.
nlohmann::json dense_twin(const nlohmann::json& json, const std::string& source);

}  // namespace language_model::training
