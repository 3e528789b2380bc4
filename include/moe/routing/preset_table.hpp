// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// All presets with their names and sources, for programs that list them.
#pragma once

#include <array>
#include <string_view>

#include "moe/core/config.hpp"
#include "moe/routing/presets.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI::presets {

/// A family's rule as its largest published model has it.
struct NamedPreset {
  std::string_view name;  ///< of the function
  std::string_view family;
  RoutingRule rule;
  bool has_selection_bias;
  std::string_view source;
};

inline constexpr std::array<NamedPreset, 28> all{{
    {"mixtral", "Mixtral", mixtral(), false, "transformers `mixtral`"},
    {"grok_1", "Grok-1", grok_1(), false, "grok-1 `model.py`"},
    {"dbrx", "DBRX", dbrx(), false, "transformers `dbrx`"},
    {"qwen2_moe", "Qwen2-MoE", qwen2_moe(), false, "transformers `qwen2_moe`"},
    {"qwen3_moe", "Qwen3-MoE", qwen3_moe(), false, "transformers `qwen3_moe`"},
    {"olmoe", "OLMoE", olmoe(), false, "transformers `olmoe`"},
    {"deepseek_v2", "DeepSeek-V2 with `norm_topk_prob`: normalised or scaled",
     deepseek_v2({.groups = 8, .groups_kept = 3, .norm_topk_prob = true, .scale = 16}), false,
     "DeepSeek-V2 `modeling_deepseek.py`"},
    {"deepseek_v2_scaled", "… normalised and scaled",
     deepseek_v2_scaled({.groups = 8, .groups_kept = 3, .norm_topk_prob = true, .scale = 16}),
     false, "DeepSeek-VL2 `modeling_deepseek.py`"},
    {"deepseek_v2_transformers", "… `norm_topk_prob` ignored",
     deepseek_v2_transformers({.groups = 8, .groups_kept = 3, .norm_topk_prob = true, .scale = 16}),
     false, "transformers `deepseek_v2`"},
    {"deepseek_v3", "DeepSeek-V3, R1", deepseek_v3({.groups = 8, .groups_kept = 4, .scale = 2.5}),
     true, "DeepSeek-V3 `inference/model.py`"},
    {"deepseek_v3_transformers", "DeepSeek-V3, zero fill",
     deepseek_v3_transformers({.groups = 8, .groups_kept = 4, .scale = 2.5}), true,
     "transformers `deepseek_v3`"},
    {"deepseek_v4", "DeepSeek-V4", deepseek_v4(), true, "llama.cpp"},
    {"kimi_k2", "Kimi-K2", kimi_k2(), true, "arXiv:2507.20534"},
    {"glm4_moe", "GLM-4.5", glm4_moe({.scale = 2.5}), true, "transformers `glm4_moe`"},
    {"minimax_m2", "MiniMax-M2", minimax_m2(), true, "transformers `minimax_m2`"},
    {"ernie4_5_moe", "ERNIE-4.5", ernie4_5_moe(), true, "transformers `ernie4_5_moe`"},
    {"jetmoe", "JetMoE", jetmoe(), false, "transformers `jetmoe`"},
    {"granitemoe", "GraniteMoE", granitemoe(), false, "transformers `granitemoe`"},
    {"llama4", "Llama-4", llama4(), false, "transformers `llama4`"},
    {"gpt_oss", "gpt-oss", gpt_oss(), false, "gpt-oss `torch/model.py`"},
    {"longcat_flash", "LongCat-Flash", longcat_flash(), true, "transformers `longcat_flash`"},
    {"moe_plus_plus", "MoE++", moe_plus_plus(), false, "SkyworkAI `moe_plus_plus_layer.py`"},
    {"switch_transformer", "Switch", switch_transformer(), false,
     "arXiv:2101.03961, transformers `switch_transformers`"},
    {"gshard", "GShard, GLaM (`glam`)", gshard(), false, "lingvo `gshard_layers.py`"},
    {"st_moe", "ST-MoE", st_moe(), false, "flaxformer `routing.py`"},
    {"nllb_moe", "NLLB-MoE", nllb_moe(), false, "transformers `nllb_moe`"},
    {"v_moe", "V-MoE", v_moe(), false, "vmoe `routing.py`"},
    {"deepspeed", "DeepSpeed", deepspeed(), false, "DeepSpeed `sharded_moe.py`"},
}};

}  // namespace moe::inline MOE_ABI::presets
