// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See report.hpp.
#include "language_model/report.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <numeric>

namespace language_model {
namespace {

constexpr std::size_t experts_per_line = 8;

/// printf into a string; the lines here are short.
template <class... Values>
std::string print(const char* format, Values... values) {
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(), format, values...);
  return line.data();
}

/// Five steps around the even share: below 60 %, 85 %, 115 % and 140 % of it, and above.
const char* shade(double share_of_even) {
  if (share_of_even < 0.60) return "\u00b7";
  if (share_of_even < 0.85) return "\u2591";
  if (share_of_even < 1.15) return "\u2592";
  return share_of_even < 1.40 ? "\u2593" : "\u2588";
}

std::string layer_rows(const LayerUse& use) {
  const auto total = static_cast<double>(
      std::accumulate(use.expert_load.begin(), use.expert_load.end(), Index{0}));
  const std::size_t num_experts = use.expert_load.size();
  std::string text;
  for (std::size_t begin = 0; begin < num_experts; begin += experts_per_line) {
    text += begin == 0 ? print("%5td ", use.layer) : print("%5s ", "");
    const std::size_t end = begin + experts_per_line;
    for (std::size_t e = begin; e < end; ++e) {
      if (e >= num_experts) {
        text += print("%8s", "");
        continue;
      }
      const double share = static_cast<double>(use.expert_load[e]) / total;
      text += print("  %s%5.1f", shade(share * static_cast<double>(num_experts)), 100 * share);
    }
    if (begin == 0)
      text += print("  %7.4f %8.4f %8.4f", use.max_violation, use.entropy, use.load_entropy);
    text += "\n";
  }
  return text;
}

}  // namespace

std::string printed_report(const Evaluation& evaluation) {
  std::string text;
  text += print("nats per byte  %.7f\n", evaluation.nats_per_byte);
  text += print("bits per byte  %.7f\n", evaluation.bits_per_byte);
  text += print("perplexity     %.7f\n", evaluation.perplexity);
  text += print("predictions    %td in %td windows of %td\n", evaluation.predictions,
                evaluation.windows, evaluation.context);
  text +=
      print("tokens/s       %.0f in %.2f s\n", evaluation.tokens_per_second, evaluation.seconds);
  if (evaluation.layers.empty()) return text;

  std::size_t columns = 0;
  for (const LayerUse& use : evaluation.layers) columns = std::max(columns, use.expert_load.size());
  columns = std::min(columns, experts_per_line);
  text += "\nShare of the choices in percent, " + std::to_string(columns) +
          " experts a line, and entropies in nats: of the router for a token, of the load.\n";
  text += "layer " + print("%*s", static_cast<int>(8 * experts_per_line), "") +
          "   MaxVio   router     load\n";
  for (const LayerUse& use : evaluation.layers) text += layer_rows(use);
  return text;
}

nlohmann::json json_report(const Evaluation& evaluation) {
  nlohmann::json json = {{"nats_per_byte", evaluation.nats_per_byte},
                         {"bits_per_byte", evaluation.bits_per_byte},
                         {"perplexity", evaluation.perplexity},
                         {"tokens_per_second", evaluation.tokens_per_second},
                         {"seconds", evaluation.seconds},
                         {"predictions", evaluation.predictions},
                         {"windows", evaluation.windows},
                         {"context", evaluation.context},
                         {"layers", nlohmann::json::array()}};
  constexpr std::array lists{"expert_load", "max_violation", "entropy", "load_entropy"};
  for (const char* list : lists) json[list] = nlohmann::json::array();
  for (const LayerUse& use : evaluation.layers) {
    const nlohmann::json layer = {{"layer", use.layer},
                                  {"expert_load", use.expert_load},
                                  {"max_violation", use.max_violation},
                                  {"entropy", use.entropy},
                                  {"load_entropy", use.load_entropy}};
    for (const char* list : lists) json[list].push_back(layer[list]);
    json["layers"].push_back(layer);
  }
  return json;
}

}  // namespace language_model
