// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A tiny checkpoint of each family, with everything that the family may have switched on.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "language_model/tiny_checkpoint.hpp"

namespace language_model {

namespace detail {

inline void add_feed_forward(TinyCheckpoint& checkpoint, const std::string& prefix,
                             const std::vector<std::string>& gate_up_down, moe::Index d_ff) {
  const auto d_model = checkpoint.config()["hidden_size"].get<moe::Index>();
  checkpoint.add(prefix + gate_up_down[0] + ".weight", {d_ff, d_model});
  checkpoint.add(prefix + gate_up_down[1] + ".weight", {d_ff, d_model});
  checkpoint.add(prefix + gate_up_down[2] + ".weight", {d_model, d_ff});
}

inline void add_attention(TinyCheckpoint& checkpoint, const std::string& prefix) {
  const auto& config = checkpoint.config();
  const auto size = [&](const char* key) { return config.at(key).get<moe::Index>(); };
  const moe::Index d_model = size("hidden_size");
  const moe::Index head_dim =
      config.value("head_dim", size("hidden_size") / size("num_attention_heads"));
  const moe::Index query = size("num_attention_heads") * head_dim;
  const moe::Index key = size("num_key_value_heads") * head_dim;
  checkpoint.add(prefix + "q_proj.weight", {query, d_model});
  checkpoint.add(prefix + "k_proj.weight", {key, d_model});
  checkpoint.add(prefix + "v_proj.weight", {key, d_model});
  checkpoint.add(prefix + "o_proj.weight", {d_model, query});
  if (config.value("attention_bias", false)) {
    checkpoint.add(prefix + "q_proj.bias", {query});
    checkpoint.add(prefix + "k_proj.bias", {key});
    checkpoint.add(prefix + "v_proj.bias", {key});
    if (config["model_type"] == "qwen3_moe") checkpoint.add(prefix + "o_proj.bias", {d_model});
  }
  if (config["model_type"] == "qwen3_moe" || config.value("use_qk_norm", false)) {
    checkpoint.add(prefix + "q_norm.weight", {head_dim}, 1);
    checkpoint.add(prefix + "k_norm.weight", {head_dim}, 1);
  }
}

/// The tensors that the configuration asks for; layers in `dense` have no experts.
inline TinyCheckpoint make_checkpoint(const nlohmann::json& config, moe::Index num_experts,
                                      moe::Index expert_d_ff,
                                      const std::vector<moe::Index>& dense) {
  TinyCheckpoint checkpoint(config);
  const auto size = [&](const char* key) { return config.at(key).get<moe::Index>(); };
  const bool is_mixtral = config["model_type"] == "mixtral";
  const std::vector<std::string> projections{"gate_proj", "up_proj", "down_proj"};
  const std::vector<std::string> of_experts =
      is_mixtral ? std::vector<std::string>{"w1", "w3", "w2"} : projections;
  checkpoint.add("model.embed_tokens.weight", {size("vocab_size"), size("hidden_size")});
  for (moe::Index n = 0; n < size("num_hidden_layers"); ++n) {
    const std::string layer = "model.layers." + std::to_string(n) + ".";
    const std::string block = layer + (is_mixtral ? "block_sparse_moe." : "mlp.");
    checkpoint.add(layer + "input_layernorm.weight", {size("hidden_size")}, 1);
    checkpoint.add(layer + "post_attention_layernorm.weight", {size("hidden_size")}, 1);
    add_attention(checkpoint, layer + "self_attn.");
    if (std::find(dense.begin(), dense.end(), n) != dense.end()) {
      add_feed_forward(checkpoint, block, projections, size("intermediate_size"));
      continue;
    }
    checkpoint.add(block + "gate.weight", {num_experts, size("hidden_size")});
    for (moe::Index e = 0; e < num_experts; ++e)
      add_feed_forward(checkpoint, block + "experts." + std::to_string(e) + ".", of_experts,
                       expert_d_ff);
    if (config["model_type"] != "glm4_moe") continue;
    checkpoint.add(block + "gate.e_score_correction_bias", {num_experts});
    add_feed_forward(checkpoint, block + "shared_experts.", projections, 2 * expert_d_ff);
  }
  checkpoint.add("model.norm.weight", {size("hidden_size")}, 1);
  if (!config.value("tie_word_embeddings", false))
    checkpoint.add("lm_head.weight", {size("vocab_size"), size("hidden_size")});
  return checkpoint;
}

}  // namespace detail

/// Grouped queries and a sliding window.
inline TinyCheckpoint tiny_mixtral() {
  return detail::make_checkpoint({{"model_type", "mixtral"},
                                  {"vocab_size", 19},
                                  {"hidden_size", 12},
                                  {"intermediate_size", 10},
                                  {"num_hidden_layers", 2},
                                  {"num_attention_heads", 3},
                                  {"num_key_value_heads", 1},
                                  {"num_local_experts", 4},
                                  {"num_experts_per_tok", 2},
                                  {"rms_norm_eps", 1e-5},
                                  {"rope_theta", 1e4},
                                  {"sliding_window", 6},
                                  {"max_position_embeddings", 64}},
                                 4, 10, {});
}

/// Heads wider than hidden_size / heads, biases everywhere, norms of query and key, dense layers of
/// both kinds, a tied head.
inline TinyCheckpoint tiny_qwen3(moe::Index head_dim = 8) {
  return detail::make_checkpoint({{"model_type", "qwen3_moe"},
                                  {"vocab_size", 23},
                                  {"hidden_size", 10},
                                  {"intermediate_size", 14},
                                  {"moe_intermediate_size", 6},
                                  {"num_hidden_layers", 6},
                                  {"num_attention_heads", 4},
                                  {"num_key_value_heads", 2},
                                  {"head_dim", head_dim},
                                  {"num_experts", 5},
                                  {"num_experts_per_tok", 3},
                                  {"norm_topk_prob", true},
                                  {"decoder_sparse_step", 2},
                                  {"mlp_only_layers", {3}},
                                  {"attention_bias", true},
                                  {"tie_word_embeddings", true},
                                  {"rms_norm_eps", 1e-6},
                                  {"rope_theta", 1e6},
                                  {"sliding_window", 4},
                                  {"use_sliding_window", false},
                                  {"max_position_embeddings", 64}},
                                 5, 6, {0, 2, 3, 4});
}

/// Half of each head turned, biases of query, key and value, a dense layer first, shared experts.
inline TinyCheckpoint tiny_glm4(bool has_query_key_norm) {
  return detail::make_checkpoint({{"model_type", "glm4_moe"},
                                  {"vocab_size", 300},
                                  {"hidden_size", 12},
                                  {"intermediate_size", 9},
                                  {"moe_intermediate_size", 7},
                                  {"num_hidden_layers", 3},
                                  {"num_attention_heads", 6},
                                  {"num_key_value_heads", 2},
                                  {"head_dim", 8},
                                  {"partial_rotary_factor", 0.5},
                                  {"n_routed_experts", 6},
                                  {"n_shared_experts", 2},
                                  {"num_experts_per_tok", 2},
                                  {"n_group", 1},
                                  {"topk_group", 1},
                                  {"norm_topk_prob", true},
                                  {"routed_scaling_factor", 1.5},
                                  {"first_k_dense_replace", 1},
                                  {"use_qk_norm", has_query_key_norm},
                                  {"attention_bias", true},
                                  {"rms_norm_eps", 1e-5},
                                  {"rope_theta", 1e4},
                                  {"max_position_embeddings", 64}},
                                 6, 7, {0});
}

}  // namespace language_model
