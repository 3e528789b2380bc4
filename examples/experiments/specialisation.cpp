// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the experts of the bundled model fire on, and how specialisation changes with depth.
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include <moe/io/checkpoint.hpp>

#include "experiments/experiment.hpp"
#include "language_model/bytes.hpp"
#include "language_model/model.hpp"
#include "language_model/training/plot.hpp"

namespace {

using language_model::Index;
using language_model::Token;

constexpr std::size_t bytes = 128;

/// Choices of each expert of a layer by the byte that is read, and by the one that follows.
struct LayerCounts {
  std::vector<std::array<double, bytes>> read;
  std::vector<std::array<double, bytes>> following;
};

struct ByteClass {
  const char* name;
  bool (*holds)(int);
};
constexpr std::array classes{
    ByteClass{"space", [](int c) { return c == ' '; }},
    ByteClass{"line end", [](int c) { return c == '\n'; }},
    ByteClass{"vowel",
              [](int c) {
                return c != 0 &&
                       std::string("aeiou").find(static_cast<char>(c)) != std::string::npos;
              }},
    ByteClass{"consonant",
              [](int c) {
                return std::islower(c) != 0 &&
                       std::string("aeiou").find(static_cast<char>(c)) == std::string::npos;
              }},
    ByteClass{"capital", [](int c) { return std::isupper(c) != 0; }},
    ByteClass{"digit", [](int c) { return std::isdigit(c) != 0; }},
    ByteClass{"punctuation", [](int c) { return std::ispunct(c) != 0; }}};

std::vector<LayerCounts> count_choices(const language_model::Model<float>& model,
                                       const std::vector<Token>& tokens, Index context) {
  std::vector<LayerCounts> counts(static_cast<std::size_t>(model.config().num_layers));
  const auto windows = (static_cast<Index>(tokens.size()) - 1) / context;
  for (Index window = 0; window < windows; ++window) {
    const Token* const first = tokens.data() + window * context;
    language_model::Session<float> session(model.config(), 1, context);
    model.forward(
        {first, static_cast<std::size_t>(context)}, session,
        [&](Index layer, moe::MatrixView<const float> /*x*/, const moe::Routing<float>& routing) {
          LayerCounts& of = counts[static_cast<std::size_t>(layer)];
          of.read.resize(static_cast<std::size_t>(routing.num_experts));
          of.following.resize(of.read.size());
          for (Index t = 0; t < routing.tokens(); ++t)
            for (Index k = 0; k < routing.top_k(); ++k) {
              const auto e = static_cast<std::size_t>(routing.experts(t, k));
              of.read[e][static_cast<std::size_t>(first[t])] += 1;
              of.following[e][static_cast<std::size_t>(first[t + 1])] += 1;
            }
        });
  }
  return counts;
}

double sum(const std::array<double, bytes>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::array<double, bytes> total(const std::vector<std::array<double, bytes>>& counts) {
  std::array<double, bytes> all{};
  for (const auto& expert : counts)
    for (std::size_t b = 0; b < bytes; ++b) all[b] += expert[b];
  return all;
}

/// Of the expert's bits of a choice, how many the byte tells: mutual information.
double information(const std::vector<std::array<double, bytes>>& counts) {
  const std::array<double, bytes> all = total(counts);
  const double choices = sum(all);
  double bits = 0;
  for (const auto& expert : counts)
    for (std::size_t b = 0; b < bytes; ++b)
      if (expert[b] > 0)
        bits += expert[b] / choices * std::log2(expert[b] * choices / (sum(expert) * all[b]));
  return bits;
}

std::string shown(std::size_t byte) {
  if (byte == ' ') return "space";
  if (byte == '\n') return "line end";
  if (byte == '|') return "bar";
  if (byte == '`') return "backquote";
  if (std::isgraph(static_cast<int>(byte)) == 0) return "byte " + std::to_string(byte);
  return "`" + std::string(1, static_cast<char>(byte)) + "`";
}

/// The bytes that an expert has most beyond their share of the text, of those that make up a
/// thousandth of it.
std::string favourites(const std::array<double, bytes>& expert,
                       const std::array<double, bytes>& all) {
  std::vector<std::pair<double, std::size_t>> lifts;
  for (std::size_t b = 0; b < bytes; ++b)
    if (all[b] >= sum(all) / 1000)
      lifts.emplace_back(expert[b] / sum(expert) / (all[b] / sum(all)), b);
  std::sort(lifts.rbegin(), lifts.rend());
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(4, lifts.size()); ++i) {
    char lift[32];
    std::snprintf(lift, sizeof(lift), " %.1f", lifts[i].first);
    text += (i > 0 ? ", " : "") + shown(lifts[i].second) + lift;
  }
  return text;
}

double class_share(const std::array<double, bytes>& counts, const ByteClass& of) {
  double inside = 0;
  for (std::size_t b = 0; b < bytes; ++b)
    if (of.holds(static_cast<int>(b))) inside += counts[b];
  return inside / sum(counts);
}

void draw_classes(const std::vector<LayerCounts>& layers, const std::string& path) {
  std::ostringstream script;
  script << "$lift << EOD\n";
  std::size_t row = 0;
  std::string ticks;
  std::ostringstream borders;
  for (std::size_t n = 0; n < layers.size(); ++n) {
    const auto all = total(layers[n].read);
    for (std::size_t e = 0; e < layers[n].read.size(); ++e, ++row) {
      for (std::size_t c = 0; c < classes.size(); ++c)
        script << c << ' ' << row << ' '
               << std::log2(std::max(0.0625, class_share(layers[n].read[e], classes[c]) /
                                                 class_share(all, classes[c])))
               << '\n';
      ticks += (row > 0 ? ", '" : "'") + std::to_string(n) + "." + std::to_string(e) + "' " +
               std::to_string(row);
    }
    script << '\n';
    if (n + 1 < layers.size()) {
      const std::string at = std::to_string(static_cast<double>(row) - 0.5);
      borders << "set arrow from graph 0, first " << at << " to graph 1, first " << at
              << " nohead front lc rgb '#555555'\n";
    }
  }
  script << "EOD\nset view map\nset cbrange [-4:4]\nset cblabel 'log2 of the lift'\n"
         << "set palette defined (-4 '#2166ac', 0 '#ffffff', 4 '#b2182b')\nset ytics (" << ticks
         << ") font ',8' nomirror\nset xtics nomirror (";
  for (std::size_t c = 0; c < classes.size(); ++c)
    script << (c > 0 ? ", " : "") << '\'' << classes[c].name << "' " << c;
  script << ")\nset ylabel 'layer.expert'\nset yrange [-0.5:" << static_cast<double>(row) - 0.5
         << "] reverse\nset xrange [-0.5:" << static_cast<double>(classes.size()) - 0.5 << "]\n"
         << borders.str() << "draw = \"plot $lift using 1:2:3 with image notitle\"\n";
  language_model::training::draw_picture(script.str(), path);
}

void draw_depth(const std::vector<LayerCounts>& layers, const std::string& path) {
  std::ostringstream script;
  script << "$bits << EOD\n";
  for (std::size_t n = 0; n < layers.size(); ++n)
    script << n << ' ' << information(layers[n].read) << ' ' << information(layers[n].following)
           << '\n';
  script << "EOD\nset xlabel 'layer'\nset ylabel 'bits of a choice that the byte tells'\n"
         << "set yrange [0:*]\nset xtics 1\nset grid lc rgb '#dddddd'\n"
         << "draw = \"plot $bits using 1:2 with linespoints lw 2 pt 7 lc rgb '#4477aa' title 'the "
            "byte that is read', $bits using 1:3 with linespoints lw 2 pt 7 lc rgb '#ee6677' title "
            "'the byte that follows'\"\n";
  language_model::training::draw_picture(script.str(), path);
}

void run(const experiments::Experiment& experiment) {
  const std::string data = MOE_EXAMPLE_DATA;
  const language_model::Model<float> model(
      moe::io::Checkpoint::open(data + "/jargon-moe.safetensors"));
  const std::vector<Token> tokens =
      language_model::to_tokens(language_model::read_file(data + "/jargon_eval.txt"),
                                model.config().vocab_size, "jargon_eval.txt");
  const std::vector<LayerCounts> layers = count_choices(model, tokens, 128);
  std::vector<std::vector<std::string>> rows;
  for (std::size_t n = 0; n < layers.size(); ++n) {
    const auto all = total(layers[n].read);
    for (std::size_t e = 0; e < layers[n].read.size(); ++e) {
      const auto& expert = layers[n].read[e];
      const auto* const best =
          std::max_element(classes.begin(), classes.end(), [&](const auto& a, const auto& b) {
            return class_share(expert, a) / class_share(all, a) <
                   class_share(expert, b) / class_share(all, b);
          });
      char share[32];
      std::snprintf(share, sizeof(share), "%.1f", 100 * sum(expert) / sum(all));
      char lift[64];
      std::snprintf(lift, sizeof(lift), "%s %.1f (%.0f %% of its tokens)", best->name,
                    class_share(expert, *best) / class_share(all, *best),
                    100 * class_share(expert, *best));
      rows.push_back({std::to_string(n), std::to_string(e), share, favourites(expert, all), lift});
    }
  }
  experiment.write_table({"layer", "expert", "choices, %", "bytes, lift", "class, lift"}, rows);
  std::printf("\n");
  for (std::size_t n = 0; n < layers.size(); ++n)
    std::printf(
        "layer %zu: the byte that is read tells %.2f of a choice's 3 bits, the one that "
        "follows %.2f\n",
        n, information(layers[n].read), information(layers[n].following));
  draw_classes(layers, experiment.folder() + "/classes");
  draw_depth(layers, experiment.folder() + "/depth");
}

}  // namespace

int main(int argc, char** argv) {
  return experiments::report_errors(
      "specialisation", [&] { run(experiments::Experiment(argc, argv, "specialisation", 0)); });
}
