// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See initial.hpp.
#include "language_model/training/initial.hpp"

#include <cmath>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>

#include <moe/io/layer_config.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/routing/noise.hpp>

#include "language_model/config.hpp"
#include "language_model/training/tensor_names.hpp"

namespace language_model::training {
namespace {

double deviation_of(Index inputs) {
  return 0.8 / std::sqrt(static_cast<double>(inputs));
}

/// Adds tensors in order, each with its own part of one random stream.
class Writer {
 public:
  explicit Writer(std::uint64_t seed) : generator_(seed) {}

  void normal(const std::string& name, Index rows, Index cols, double deviation) {
    Matrix<float> values(rows, cols);
    moe::fill_noise(moe::Noise::normal, generator_, moe::MatrixView<float>(values));
    values *= static_cast<float>(deviation);
    file.add(name, values);
  }

  void matrix(const std::string& name, Index rows, Index cols) {
    normal(name + ".weight", rows, cols, deviation_of(cols));
  }

  void vector(const std::string& name, Index size, float value) {
    file.add_vector(name, Matrix<float>::Constant(size, 1, value));
  }

  moe::io::SafetensorsWriter file;

 private:
  std::mt19937_64 generator_;
};

void add_attention(const ModelConfig& config, const std::string& prefix, Writer& writer) {
  const Index query = config.num_heads * config.head_dim;
  const Index key = config.num_key_value_heads * config.head_dim;
  const auto projection = [&](const char* name, Index rows, Index cols, bool has_bias) {
    writer.matrix(prefix + name, rows, cols);
    if (has_bias) writer.vector(prefix + name + ".bias", rows, 0);
  };
  projection("q_proj", query, config.d_model, config.has_input_biases);
  projection("k_proj", key, config.d_model, config.has_input_biases);
  projection("v_proj", key, config.d_model, config.has_input_biases);
  projection("o_proj", config.d_model, query, config.has_output_bias);
  if (!config.has_query_key_norm) return;
  writer.vector(prefix + "q_norm.weight", config.head_dim, 1);
  writer.vector(prefix + "k_norm.weight", config.head_dim, 1);
}

void add_expert(const ExpertNames& names, Index d_model, Index d_ff, Writer& writer) {
  writer.matrix(names.gate, d_ff, d_model);
  writer.matrix(names.up, d_ff, d_model);
  writer.matrix(names.down, d_model, d_ff);
}

void add_mixture(const std::string& model_type, const moe::io::LayerConfig& config, Index layer,
                 Writer& writer) {
  const MixtureNames names(model_type, layer);
  writer.normal(names.router(), config.num_experts, config.d_model, deviation_of(config.d_model));
  if (!names.selection_bias().empty()) writer.vector(names.selection_bias(), config.num_experts, 0);
  for (Index e = 0; e < config.num_experts; ++e)
    add_expert(names.expert(e), config.d_model, config.d_ff, writer);
  if (config.shared_d_ff > 0)
    add_expert(names.shared(), config.d_model, config.shared_d_ff, writer);
}

}  // namespace

// Fields that say how others trained the model (attention_dropout, initializer_range,
// router_aux_loss_coef, output_router_logits) are known, and mean nothing here: options say it.
void check_fields(const nlohmann::json& config, const std::string& source) {
  static const std::set<std::string> common{"architectures",
                                            "attention_bias",
                                            "attention_dropout",
                                            "bos_token_id",
                                            "dtype",
                                            "eos_token_id",
                                            "head_dim",
                                            "hidden_act",
                                            "hidden_size",
                                            "initializer_range",
                                            "intermediate_size",
                                            "max_position_embeddings",
                                            "model_type",
                                            "num_attention_heads",
                                            "num_experts_per_tok",
                                            "num_hidden_layers",
                                            "num_key_value_heads",
                                            "output_router_logits",
                                            "pad_token_id",
                                            "rms_norm_eps",
                                            "rope_scaling",
                                            "rope_theta",
                                            "router_aux_loss_coef",
                                            "sliding_window",
                                            "tie_word_embeddings",
                                            "torch_dtype",
                                            "transformers_version",
                                            "use_cache",
                                            "vocab_size"};
  static const std::map<std::string, std::set<std::string>> of_family{
      {"mixtral", {"num_local_experts", "router_jitter_noise"}},
      {"qwen3_moe",
       {"decoder_sparse_step", "max_window_layers", "mlp_only_layers", "moe_intermediate_size",
        "norm_topk_prob", "num_experts", "use_sliding_window"}},
      {"glm4_moe",
       {"first_k_dense_replace", "moe_intermediate_size", "n_group", "n_routed_experts",
        "n_shared_experts", "norm_topk_prob", "num_nextn_predict_layers", "partial_rotary_factor",
        "routed_scaling_factor", "topk_group", "use_qk_norm"}}};
  const auto family = of_family.find(read_config(config, source).model_type);
  for (const auto& [key, value] : config.items())
    if (!common.contains(key) && !family->second.contains(key))
      throw moe::FormatError(source, "", 0,
                             "'" + key + "' is no field of a " + family->first + " configuration");
}

std::string initial_checkpoint(const nlohmann::json& json, const std::string& source,
                               std::uint64_t seed) {
  const ModelConfig config = read_config(json, source);
  Writer writer(seed);
  writer.file.metadata("config", json.dump());
  writer.normal("model.embed_tokens.weight", config.vocab_size, config.d_model, 0.02);
  for (Index n = 0; n < config.num_layers; ++n) {
    const std::string prefix = layer_prefix(n);
    writer.vector(prefix + "input_layernorm.weight", config.d_model, 1);
    add_attention(config, prefix + "self_attn.", writer);
    writer.vector(prefix + "post_attention_layernorm.weight", config.d_model, 1);
    if (config.is_dense(n)) {
      add_expert(dense_names(n), config.d_model, config.dense_d_ff, writer);
    } else {
      add_mixture(config.model_type, moe::io::layer_config(json, source), n, writer);
    }
  }
  writer.vector("model.norm.weight", config.d_model, 1);
  if (!config.has_tied_head)
    writer.normal("lm_head.weight", config.vocab_size, config.d_model, 0.02);
  return writer.file.bytes();
}

nlohmann::json dense_twin(const nlohmann::json& json, const std::string& source) {
  const ModelConfig config = read_config(json, source);
  const moe::io::LayerConfig layer = moe::io::layer_config(json, source);
  const Index width = layer.top_k * layer.d_ff + layer.shared_d_ff;
  const auto check = [&](bool holds, const char* problem) {
    if (!holds) throw std::invalid_argument(source + ": no dense twin of a model with " + problem);
  };
  check(config.sliding_window == 0, "a sliding window");
  check(!config.has_output_bias, "biases behind its attention");
  for (Index n = 0; n < config.num_layers; ++n)
    check(!config.is_dense(n) || config.dense_d_ff == width,
          "dense layers of another width than its mixtures' active one");
  nlohmann::json twin = {{"model_type", "glm4_moe"},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.d_model},
                         {"intermediate_size", width},
                         {"num_hidden_layers", config.num_layers},
                         {"first_k_dense_replace", config.num_layers},
                         {"num_attention_heads", config.num_heads},
                         {"num_key_value_heads", config.num_key_value_heads},
                         {"head_dim", config.head_dim},
                         {"partial_rotary_factor", static_cast<double>(config.rotary_dims) /
                                                       static_cast<double>(config.head_dim)},
                         {"use_qk_norm", config.has_query_key_norm},
                         {"attention_bias", config.has_input_biases},
                         {"rms_norm_eps", config.norm_epsilon},
                         {"rope_theta", config.rope_theta},
                         {"max_position_embeddings", config.max_positions},
                         {"tie_word_embeddings", config.has_tied_head}};
  return twin;
}

}  // namespace language_model::training
