// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A transformer in plain loops over doubles, one position at a time: nothing in it comes from the
// library or the example, and it reads the configuration for itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "language_model/tiny_checkpoint.hpp"

namespace language_model {

class NaiveModel {
 public:
  using Row = std::vector<double>;

  explicit NaiveModel(const TinyCheckpoint& checkpoint) : checkpoint_(checkpoint) {}

  /// Logits of the next token after each token.
  std::vector<Row> logits(const std::vector<int>& tokens) const {
    const std::size_t d_model = size("hidden_size");
    const Row& embedding = checkpoint_.values("model.embed_tokens.weight");
    std::vector<Row> x;
    for (const int token : tokens) {
      const auto begin = embedding.begin() + token * static_cast<std::ptrdiff_t>(d_model);
      x.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(d_model));
    }
    for (std::size_t n = 0; n < size("num_hidden_layers"); ++n) {
      const std::string layer = "model.layers." + std::to_string(n) + ".";
      attention(layer, x);
      for (Row& row : x)
        add(1, feed_forward(layer, norm(row, layer + "post_attention_layernorm")), row);
    }
    const bool is_tied = checkpoint_.config().value("tie_word_embeddings", false);
    std::vector<Row> result;
    for (const Row& row : x)
      result.push_back(linear(norm(row, "model.norm"), is_tied ? "model.embed_tokens" : "lm_head"));
    return result;
  }

 private:
  std::size_t size(const char* key) const {
    return checkpoint_.config().at(key).get<std::size_t>();
  }

  static void add(double factor, const Row& from, Row& to) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
  }

  Row norm(const Row& x, const std::string& name) const {
    const Row& weight = checkpoint_.values(name + ".weight");
    const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    const double epsilon = checkpoint_.config().at("rms_norm_eps").get<double>();
    Row y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      y[i] = weight[i] * x[i] / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
    return y;
  }

  Row linear(const Row& x, const std::string& name) const {
    const Row& weight = checkpoint_.values(name + ".weight");
    Row y(weight.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    if (checkpoint_.has(name + ".bias")) add(1, checkpoint_.values(name + ".bias"), y);
    return y;
  }

  Row rotate(const Row& head, std::size_t position) const {
    const double factor = checkpoint_.config().value("partial_rotary_factor", 1.0);
    const auto turned = static_cast<std::size_t>(factor * static_cast<double>(head.size()));
    const double theta = checkpoint_.config().at("rope_theta").get<double>();
    Row y = head;
    for (std::size_t i = 0; i < turned / 2; ++i) {
      const std::size_t partner = i + turned / 2;
      const double exponent = 2 * static_cast<double>(i) / static_cast<double>(turned);
      const double angle = static_cast<double>(position) / std::pow(theta, exponent);
      y[i] = head[i] * std::cos(angle) - head[partner] * std::sin(angle);
      y[partner] = head[partner] * std::cos(angle) + head[i] * std::sin(angle);
    }
    return y;
  }

  /// The heads of a projection, normalised and turned where `norm_name` is not empty.
  std::vector<Row> heads(const Row& x, const std::string& projection, const std::string& norm_name,
                         std::size_t position) const {
    const Row all = linear(x, projection);
    const std::size_t dim =
        checkpoint_.config().value("head_dim", size("hidden_size") / size("num_attention_heads"));
    std::vector<Row> result;
    for (std::size_t begin = 0; begin < all.size(); begin += dim) {
      Row head(dim);
      for (std::size_t i = 0; i < dim; ++i) head[i] = all[begin + i];
      if (!norm_name.empty()) {
        if (checkpoint_.has(norm_name + ".weight")) head = norm(head, norm_name);
        head = rotate(head, position);
      }
      result.push_back(head);
    }
    return result;
  }

  void attention(const std::string& layer, std::vector<Row>& x) const {
    const std::string name = layer + "self_attn.";
    const bool slides = checkpoint_.config()["model_type"] == "mixtral" &&
                        checkpoint_.config().contains("sliding_window");
    const std::size_t window = slides ? size("sliding_window") : x.size();
    std::vector<std::vector<Row>> keys;
    std::vector<std::vector<Row>> values;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Row h = norm(x[t], layer + "input_layernorm");
      keys.push_back(heads(h, name + "k_proj", name + "k_norm", t));
      values.push_back(heads(h, name + "v_proj", "", t));
      Row mixed;
      const auto queries = heads(h, name + "q_proj", name + "q_norm", t);
      for (std::size_t q = 0; q < queries.size(); ++q) {
        const std::size_t shared = q / (queries.size() / keys[t].size());
        const Row& query = queries[q];
        Row sum(query.size());
        double total = 0;
        for (std::size_t s = t + 1 > window ? t + 1 - window : 0; s <= t; ++s) {
          const Row& key = keys[s][shared];
          const double dot = std::inner_product(query.begin(), query.end(), key.begin(), 0.0);
          const double weight = std::exp(dot / std::sqrt(static_cast<double>(query.size())));
          add(weight, values[s][shared], sum);
          total += weight;
        }
        for (const double value : sum) mixed.push_back(value / total);
      }
      // The rows after this one do not look at x[t] again, only at its key and value.
      add(1, linear(mixed, name + "o_proj"), x[t]);
    }
  }

  Row swiglu(const Row& x, const std::string& gate, const std::string& up,
             const std::string& down) const {
    Row hidden = linear(x, up);
    const Row gates = linear(x, gate);
    for (std::size_t i = 0; i < hidden.size(); ++i)
      hidden[i] *= gates[i] / (1 + std::exp(-gates[i]));
    return linear(hidden, down);
  }

  Row feed_forward(const std::string& layer, const Row& x) const {
    const bool is_mixtral = checkpoint_.config()["model_type"] == "mixtral";
    const std::string block = layer + (is_mixtral ? "block_sparse_moe." : "mlp.");
    const auto projections = [&](const std::string& of) {
      return is_mixtral ? swiglu(x, of + "w1", of + "w3", of + "w2")
                        : swiglu(x, of + "gate_proj", of + "up_proj", of + "down_proj");
    };
    if (!checkpoint_.has(block + "gate.weight")) return projections(block);
    const bool is_glm = checkpoint_.has(block + "gate.e_score_correction_bias");
    Row scores = linear(x, block + "gate");
    for (double& score : scores) score = is_glm ? 1 / (1 + std::exp(-score)) : std::exp(score);
    Row order = scores;
    if (is_glm) add(1, checkpoint_.values(block + "gate.e_score_correction_bias"), order);
    std::vector<std::size_t> chosen(scores.size());
    std::iota(chosen.begin(), chosen.end(), std::size_t{0});
    std::sort(chosen.begin(), chosen.end(),
              [&](std::size_t a, std::size_t b) { return order[a] > order[b]; });
    chosen.resize(size("num_experts_per_tok"));
    double total = 0;
    for (const std::size_t e : chosen) total += scores[e];
    Row y(x.size());
    const double scale = checkpoint_.config().value("routed_scaling_factor", 1.0);
    for (const std::size_t e : chosen)
      add(scale * scores[e] / total, projections(block + "experts." + std::to_string(e) + "."), y);
    if (is_glm) add(1, projections(block + "shared_experts."), y);
    return y;
  }

  const TinyCheckpoint& checkpoint_;
};

}  // namespace language_model
