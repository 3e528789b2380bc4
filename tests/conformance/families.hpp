// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From the metadata of a case to the layer that must reproduce it.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "conformance/golden_case.hpp"

namespace conformance {

/// The families whose cases are run.
inline constexpr std::array<std::string_view, 6> families{
    "mixtral", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3", "deepseek_v3_official"};

inline bool is_covered(const std::string& family) {
  for (const std::string_view known : families)
    if (known == family) return true;
  return false;
}

inline moe::presets::BiasedSigmoid biased_sigmoid(const GoldenCase& golden) {
  return {.groups = golden.size("n_group"),
          .groups_kept = golden.size("topk_group"),
          .norm_topk_prob = golden.text("norm_topk_prob") == "1",
          .scale = golden.number("routed_scaling_factor")};
}

/// DeepSeek's own code decides by the presence of the bias between the two group scores, and
/// renormalises sigmoid scores only.
inline moe::RoutingRule official_rule(const GoldenCase& golden) {
  moe::RoutingRule rule = moe::presets::deepseek_v3(biased_sigmoid(golden));
  if (!golden.has(golden.weights_prefix() + "gate.e_score_correction_bias"))
    rule.groups.score = moe::GroupScore::maximum;
  if (golden.text("scoring") == "softmax") {
    rule.score = moe::ScoreFunction::softmax;
    rule.renormalization.kind = moe::Renormalization::none;
  }
  return rule;
}

inline moe::io::LayerConfig layer_config(const GoldenCase& golden) {
  using moe::io::Family;
  if (golden.text("activation") != "silu" || golden.text("glu") != "1")
    throw std::runtime_error("the activation is not the family's");
  const std::string family = golden.family();
  const bool normalized = golden.text("norm_topk_prob") == "1";
  moe::io::LayerConfig config;
  config.d_model = golden.size("d_model");
  config.d_ff = golden.size("d_ff");
  config.num_experts = golden.size("E");
  config.top_k = golden.size("k");
  config.num_shared = std::stol(golden.text("n_shared", "0"));
  if (family == "mixtral") {
    config.family = Family::mixtral;
    config.rule = moe::presets::mixtral();
  } else if (family == "qwen3_moe") {
    config.family = Family::qwen3_moe;
    config.rule = moe::presets::qwen3_moe(normalized);
  } else if (family == "olmoe") {
    config.family = Family::olmoe;
    config.rule = moe::presets::olmoe(normalized);
  } else if (family == "glm4_moe") {
    config.family = Family::glm4_moe;
    config.rule = moe::presets::glm4_moe(biased_sigmoid(golden));
  } else if (family == "deepseek_v3") {
    config.family = Family::deepseek_v3;
    config.rule = moe::presets::deepseek_v3_transformers(biased_sigmoid(golden));
  } else if (family == "deepseek_v3_official") {
    config.family = Family::deepseek_v3;
    config.rule = official_rule(golden);
  } else {
    throw std::runtime_error("the family '" + family + "' is not covered");
  }
  return config;
}

}  // namespace conformance
