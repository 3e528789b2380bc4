// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a case declares of its rule, against what its family's rule takes for granted.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "conformance/golden_case.hpp"

namespace conformance {

/// A metadata entry that a family's rule reads no further, and the values that it stands for.
struct Declaration {
  const char* family;
  const char* key;
  std::vector<std::string> values;
};

inline const std::vector<Declaration>& declarations() {
  static const std::vector<Declaration> all{
      {"mixtral", "scoring", {"softmax"}},
      {"mixtral", "norm_topk_prob", {"1"}},
      {"qwen2_moe", "scoring", {"softmax"}},
      {"qwen3_moe", "scoring", {"softmax"}},
      {"olmoe", "scoring", {"softmax"}},
      {"dbrx", "scoring", {"softmax"}},
      {"deepseek_v2", "scoring", {"softmax"}},
      {"deepseek_v2", "group_mask_fill", {"0.0", "0"}},
      {"deepseek_v2_official", "scoring", {"softmax"}},
      {"deepseek_v2_official", "group_mask_fill", {"0.0", "0"}},
      {"deepseek_v2_official", "denominator_eps", {"1e-20"}},
      {"deepseek_v3", "scoring", {"sigmoid"}},
      {"deepseek_v3", "group_mask_fill", {"0.0", "0"}},
      {"deepseek_v3", "denominator_eps", {"1e-20"}},
      {"deepseek_v3", "topk_method", {"noaux_tc"}},
      {"deepseek_v3_official", "scoring", {"sigmoid", "softmax"}},
      {"deepseek_v3_official", "group_mask_fill", {"-inf"}},
      {"deepseek_v3_official", "denominator_eps", {"0", "0.0"}},
      {"glm4_moe", "scoring", {"sigmoid"}},
      {"glm4_moe", "group_mask_fill", {"0.0", "0"}},
      {"glm4_moe", "denominator_eps", {"1e-20"}},
      {"glm4_moe", "topk_method", {"noaux_tc"}},
      {"phimoe", "scoring", {"sparsemixer"}},
      {"llama4", "scoring", {"sigmoid"}},
      {"llama4", "weights_applied_to", {"input"}},
      {"gpt_oss", "scoring", {"topk_softmax"}},
      {"gpt_oss", "glu", {"interleaved"}},
      {"jetmoe", "scoring", {"topk_softmax"}},
      {"jetmoe", "glu", {"concat"}},
      {"granitemoe", "scoring", {"topk_softmax"}},
      {"granitemoe", "glu", {"concat"}},
      {"ernie4_5_moe", "scoring", {"softmax"}},
      {"ernie4_5_moe", "norm_topk_prob", {"1"}},
      {"switch", "scoring", {"softmax"}},
      {"switch", "norm_topk_prob", {"0"}},
      {"switch", "glu", {"0"}},
      {"nllb_moe", "scoring", {"softmax"}},
      {"nllb_moe", "glu", {"0"}},
      {"deepspeed", "scoring", {"softmax"}},
      {"deepspeed", "glu", {"0"}},
      {"megablocks", "scoring", {"softmax"}},
      {"megablocks", "glu", {"0"}},
      {"flaxformer", "scoring", {"softmax"}},
      {"flaxformer", "norm_topk_prob", {"0"}},
      {"flaxformer", "glu", {"0"}},
      {"shazeer", "scoring", {"topk_softmax"}},
      {"shazeer", "glu", {"0"}},
      {"jacobs1991", "scoring", {"softmax"}},
      {"jacobs1991", "glu", {"0"}},
  };
  return all;
}

/// Throws std::runtime_error if a case declares a rule that is not its family's.
inline void check_declarations(const GoldenCase& golden) {
  for (const Declaration& declaration : declarations()) {
    if (golden.family() != declaration.family || !golden.has_entry(declaration.key)) continue;
    const std::string value = golden.text(declaration.key);
    bool known = false;
    for (const std::string& allowed : declaration.values) known = known || value == allowed;
    if (known) continue;
    const std::string key = declaration.key;
    throw std::runtime_error("'" + key + "' is '" + value + "', which is not the family's rule");
  }
}

}  // namespace conformance
