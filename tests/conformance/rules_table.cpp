// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Prints the README's table of rules: from the presets, and from a run of the reference cases.
#include <exception>
#include <filesystem>
#include <iostream>
#include <map>
#include <string>

#include <moe/routing/describe.hpp>
#include <moe/routing/preset_table.hpp>

#include "conformance/golden_case.hpp"
#include "conformance/run_case.hpp"

namespace conformance {
namespace {

/// Which row of the table a case belongs to: a preset, or a router of its own.
std::string row_of(const GoldenCase& golden) {
  static const std::map<std::string, std::string> rows{
      {"deepseek_v2", "deepseek_v2_transformers"},
      {"deepseek_v2_official", "deepseek_v2_scaled"},
      {"deepseek_v3", "deepseek_v3_transformers"},
      {"deepseek_v3_official", "deepseek_v3"},
      {"switch", "switch_transformer"},
      {"phimoe", "SparseMixerRouter"},
      {"shazeer", "NoisyTopKRouter"},
      {"expert_choice", "ExpertChoiceRouter"},
      {"jacobs1991", "DenseMixture"},
      {"epfml_moe", "RoutingRule{}"}};
  const std::string family = golden.family();
  if (family == "flaxformer")
    return golden.text("router") == "experts_choose" ? "ExpertChoiceRouter"
           : golden.size("k") == 1                   ? "switch_transformer"
                                                     : "st_moe";
  const auto found = rows.find(family);
  return found != rows.end() ? found->second : family;
}

struct Count {
  int passed = 0;
  int total = 0;
};

void print_table(const std::string& folder) {
  std::map<std::string, Count> counts;
  const nlohmann::json index = read_index(folder);
  for (const auto& [name, entry] : index.at("cases").items()) {
    const std::string path =
        (std::filesystem::path(folder) / entry.at("file").get<std::string>()).string();
    Count& count = counts[row_of(GoldenCase(path, entry))];
    ++count.total;
    count.passed += run_case(folder, name, entry).passed ? 1 : 0;
  }
  const auto print = [&](const std::string& name, const std::string& family,
                         const std::string& rule, const std::string& source) {
    const Count count = counts[name];
    const std::string cases =
        count.total > 0 ? std::to_string(count.passed) + " of " + std::to_string(count.total) : "";
    std::cout << "| `" << name << "` | " << family << " | " << rule << " | " << source << " | "
              << cases << " |\n";
  };
  std::cout << "| name | family | rule | source | cases passed |\n|---|---|---|---|---|\n";
  for (const moe::presets::NamedPreset& preset : moe::presets::all)
    print(std::string(preset.name), std::string(preset.family),
          moe::describe(preset.rule, preset.has_selection_bias), std::string(preset.source));
  print("megablocks", "MegaBlocks", moe::describe(moe::presets::megablocks()),
        "MegaBlocks `router.py`");
  print("RoutingRule{}", "llm-baselines", moe::describe({}), "llm-baselines `moe.py`");
  print("SparseMixerRouter", "Phi-3.5-MoE", "twice: the best, softmax over those near it",
        "transformers `phimoe`");
  print("NoisyTopKRouter", "sparsely-gated mixture",
        "noisy logits; K best; softmax over the chosen", "arXiv:1701.06538");
  print("GShardRouter", "GShard", "two best, the second kept at random in training",
        "arXiv:2006.16668");
  print("ExpertChoiceRouter", "expert choice", "each expert takes its C best tokens",
        "arXiv:2202.09368, flaxformer `routing.py`");
  print("HashRouter", "hash layers", "a table by token id", "arXiv:2106.04426");
  print("BaseRouter", "BASE", "balanced assignment in training, the best in use",
        "arXiv:2103.16716");
  print("GroupRouter", "sequence- and task-level", "one decision for a group of tokens",
        "arXiv:2110.03742");
  print("ModalityRouter", "modality-aware", "a subset of the experts for each type of token",
        "arXiv:2407.21770");
  print("SoftMoe", "Soft MoE", "slots that mix all tokens", "arXiv:2308.00951");
  print("DenseMixture", "adaptive mixture", "all experts, softmax", "Jacobs et al. (1991)");
  print("MixtureOfDepths", "Mixture-of-Depths", "the best tokens pass through a block",
        "arXiv:2404.02258");
}

}  // namespace
}  // namespace conformance

int main() {
  try {
    conformance::print_table(MOE_TEST_DATA "/golden");
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
