// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A model and a text small enough to be trained within a test.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace language_model {

inline nlohmann::json mixtral_config() {
  return {{"model_type", "mixtral"},  {"vocab_size", 128},      {"hidden_size", 16},
          {"intermediate_size", 12},  {"num_hidden_layers", 2}, {"num_attention_heads", 2},
          {"num_key_value_heads", 1}, {"num_local_experts", 4}, {"num_experts_per_tok", 2},
          {"rms_norm_eps", 1e-5},     {"rope_theta", 1e4},      {"max_position_embeddings", 64}};
}

/// A text with something to learn.
inline std::string text() {
  std::string result;
  for (int i = 0; i < 400; ++i) result += i % 3 == 0 ? "the cat sat. " : "a dog ran, ";
  return result;
}

}  // namespace language_model
