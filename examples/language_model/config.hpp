// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a model's config.json says about everything but its MoE blocks.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/core/types.hpp>

namespace language_model {

using moe::Index;

/// Sizes and conventions of a decoder-only transformer. The published families differ in these.
struct ModelConfig {
  std::string model_type;
  Index vocab_size = 0;
  Index d_model = 0;
  Index num_layers = 0;
  Index num_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;
  Index max_positions = 0;
  Index sliding_window = 0;  ///< positions that a token attends to, itself included; 0 for all
  double norm_epsilon = 0;

  Index rotary_dims = 0;  ///< leading dimensions of a head that are turned
  double rope_theta = 0;

  bool has_query_key_norm = false;
  bool has_input_biases = false;  ///< of the query, key and value projections
  bool has_output_bias = false;
  bool has_tied_head = false;  ///< the head is the embedding

  Index dense_d_ff = 0;             ///< hidden width of the layers without experts
  Index first_sparse_layer = 0;     ///< all layers before it are dense
  Index sparse_step = 1;            ///< every so many layers one has experts
  std::vector<Index> dense_layers;  ///< further layers without experts

  /// Whether the layer has an ordinary feed-forward block in place of experts.
  bool is_dense(Index layer) const {
    return layer < first_sparse_layer || (layer + 1) % sparse_step != 0 ||
           std::find(dense_layers.begin(), dense_layers.end(), layer) != dense_layers.end();
  }
};

/// Reads the configuration of a mixtral, qwen3_moe or glm4_moe model. `source` is named in errors.
///
/// Throws  moe::FormatError if a field is missing or absurd, or asks for what is not implemented
///         here: another model type, scaled rotary positions.
ModelConfig read_config(const nlohmann::json& json, const std::string& source);

}  // namespace language_model
