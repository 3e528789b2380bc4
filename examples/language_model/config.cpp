// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See config.hpp.
#include "language_model/config.hpp"

#include <cmath>

#include <moe/io/config_reader.hpp>

namespace language_model {
namespace {

using moe::io::ConfigReader;

void read_heads(const ConfigReader& fields, ModelConfig& config) {
  config.num_heads = fields.positive("num_attention_heads");
  config.num_key_value_heads = fields.positive("num_key_value_heads");
  fields.check(config.num_heads % config.num_key_value_heads == 0, "num_key_value_heads");
  if (fields.has("head_dim")) {
    config.head_dim = fields.positive("head_dim");
  } else {
    fields.check(config.d_model % config.num_heads == 0, "num_attention_heads");
    config.head_dim = config.d_model / config.num_heads;
  }
}

void read_rotary(const ConfigReader& fields, ModelConfig& config) {
  if (fields.has("rope_scaling"))
    fields.fail("'rope_scaling' is " + fields["rope_scaling"].dump() + ", which is not supported");
  if (fields.has("rope_parameters"))
    fields.fail("'rope_parameters' are not supported, only 'rope_theta'");
  config.rope_theta = fields.get<double>("rope_theta");
  fields.check(config.rope_theta > 0, "rope_theta");
  const double usual = config.model_type == "glm4_moe" ? 0.5 : 1.0;
  const auto factor = fields.get<double>("partial_rotary_factor", usual);
  const double turned = factor * static_cast<double>(config.head_dim);
  const bool is_share = factor > 0 && factor <= 1;
  config.rotary_dims = is_share ? static_cast<Index>(std::floor(turned)) : 0;
  if (config.rotary_dims < 2 || config.rotary_dims % 2 != 0)
    fields.fail("rotary positions on " + std::to_string(turned) + " of the " +
                std::to_string(config.head_dim) + " dimensions of a head are not supported");
}

void read_family(const ConfigReader& fields, ModelConfig& config) {
  if (config.model_type == "mixtral") {
    config.sliding_window = fields.has("sliding_window") ? fields.positive("sliding_window") : 0;
  } else if (config.model_type == "qwen3_moe") {
    config.has_query_key_norm = true;
    config.has_input_biases = fields.get<bool>("attention_bias", false);
    config.has_output_bias = config.has_input_biases;
    config.dense_d_ff = fields.positive("intermediate_size");
    if (fields.get<bool>("use_sliding_window", false))
      config.sliding_window = fields.positive("sliding_window");
    if (fields.has("decoder_sparse_step"))
      config.sparse_step = fields.positive("decoder_sparse_step");
    if (!fields.has("mlp_only_layers")) return;
    for (const nlohmann::json& layer : fields["mlp_only_layers"]) {
      fields.check(layer.is_number_integer(), "mlp_only_layers");
      config.dense_layers.push_back(layer.get<Index>());
    }
  } else {
    config.has_query_key_norm = fields.get<bool>("use_qk_norm", false);
    config.has_input_biases = fields.get<bool>("attention_bias", false);
    config.dense_d_ff = fields.positive("intermediate_size");
    // The published models begin with one dense layer, transformers' default for an absent field.
    config.first_sparse_layer = fields.get<Index>("first_k_dense_replace", 1);
  }
}

}  // namespace

ModelConfig read_config(const nlohmann::json& json, const std::string& source) {
  if (json.is_null())
    throw moe::FormatError(source, "", 0,
                           "there is neither a config.json beside it nor a metadata entry "
                           "'config'");
  const ConfigReader fields(json, source);
  ModelConfig config;
  config.model_type = fields.get<std::string>("model_type");
  if (config.model_type != "mixtral" && config.model_type != "qwen3_moe" &&
      config.model_type != "glm4_moe")
    fields.fail("model_type '" + config.model_type +
                "' is not one of mixtral, qwen3_moe and glm4_moe");
  // Dense layers have no other.
  const auto activation = fields.get<std::string>("hidden_act", "silu");
  if (activation != "silu") fields.fail("hidden_act '" + activation + "' is not supported");
  config.vocab_size = fields.positive("vocab_size");
  config.d_model = fields.positive("hidden_size");
  config.num_layers = fields.positive("num_hidden_layers");
  config.max_positions = fields.positive("max_position_embeddings");
  config.norm_epsilon = fields.get<double>("rms_norm_eps");
  fields.check(config.norm_epsilon >= 0, "rms_norm_eps");
  config.has_tied_head = fields.get<bool>("tie_word_embeddings", false);
  read_heads(fields, config);
  read_rotary(fields, config);
  read_family(fields, config);
  return config;
}

}  // namespace language_model
