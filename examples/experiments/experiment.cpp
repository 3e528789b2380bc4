// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See experiment.hpp.
#include "experiments/experiment.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <unistd.h>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "language_model/bytes.hpp"
#include "language_model/training/plot.hpp"

namespace experiments {
namespace {

constexpr std::array<std::uint64_t, 3> seeds{1, 2, 3};
constexpr std::array<const char*, 6> colours{"#4477aa", "#ee6677", "#228833",
                                             "#ccbb44", "#aa3377", "#555555"};

std::string data_file(const std::string& name) {
  return std::string(MOE_EXAMPLE_DATA "/") + name;
}

/// Throws  std::invalid_argument naming the argument unless the value is a positive whole number.
int whole_number(const std::string& key, const std::string& value) {
  int number = 0;
  const char* const end = value.data() + value.size();
  const auto [rest, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc() || rest != end || number <= 0)
    throw std::invalid_argument(key + " takes a positive whole number, not '" + value + "'");
  return number;
}

void write_file(const std::string& path, const std::string& text) {
  language_model::OutputFile file(path);
  file.commit(text);
}

/// Means of a figure over groups of steps: (step or second of the last, mean).
std::vector<std::pair<double, double>> grouped(const Run& run,
                                               const std::function<double(const LogEntry&)>& figure,
                                               Index group, Axis axis) {
  std::vector<std::pair<double, double>> points;
  double sum = 0;
  Index count = 0;
  for (const LogEntry& entry : run) {
    const double value = figure(entry);
    if (value >= 0) {
      sum += value;
      ++count;
    }
    if (entry.step % group == 0 && count > 0) {
      points.emplace_back(axis == Axis::steps ? static_cast<double>(entry.step) : entry.seconds,
                          sum / static_cast<double>(count));
      sum = 0;
      count = 0;
    }
  }
  return points;
}

}  // namespace

Spread spread_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  Spread spread;
  spread.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  for (const double value : values)
    spread.deviation += (value - spread.mean) * (value - spread.mean);
  spread.deviation = values.size() > 1 ? std::sqrt(spread.deviation / (n - 1)) : 0;
  return spread;
}

Spread spread_of(const Result& result, const std::function<double(const Run&)>& figure) {
  std::vector<double> values;
  for (const Run& run : result.runs) values.push_back(figure(run));
  return spread_of(values);
}

double step_seconds(const std::vector<Run>& runs) {
  std::vector<double> seconds;
  for (const Run& run : runs) {
    for (std::size_t i = run.size() / 2; i < run.size(); ++i)
      seconds.push_back(run[i].seconds - (i == 0 ? 0 : run[i - 1].seconds));
  }
  const auto decile = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 10);
  std::nth_element(seconds.begin(), decile, seconds.end());
  return *decile;
}

std::string time_without_neighbours(const Result& result) {
  const auto steps = static_cast<double>(result.runs.front().size());
  return std::to_string(std::lround(steps * step_seconds(result.runs)));
}

std::string loss_above(const Result& result, const Result& base) {
  if (&result == &base) return "0";
  std::vector<double> values;
  for (std::size_t seed = 0; seed < result.runs.size(); ++seed)
    values.push_back(final_loss(result.runs[seed]) - final_loss(base.runs[seed]));
  const Spread spread = spread_of(values);
  std::string text = spread.mean > 0 ? "+" : "";
  text += text_of(spread, 3);
  return text;
}

std::string text_of(const Spread& spread, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f ± %.*f", digits, spread.mean, digits,
                spread.deviation);
  return text.data();
}

Experiment::Experiment(int argc, char** argv, std::string name, Index steps)
    : folder_(std::move(name)), steps_(steps) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    const std::string value = argv[i + 1];
    if (key == "--out") {
      folder_ = value;
    } else if (key == "--steps" && steps > 0) {
      steps_ = whole_number(key, value);
    } else if (key == "--threads") {
      const int threads = whole_number(key, value);
#if defined(_OPENMP)
      omp_set_num_threads(threads);
#else
      static_cast<void>(threads);
#endif
    } else {
      throw std::invalid_argument("unknown argument " + key);
    }
  }
  if (argc % 2 == 0) throw std::invalid_argument("every argument needs a value");
  std::filesystem::create_directories(folder_);
}

nlohmann::json Experiment::mixtral() {
  return {{"model_type", "mixtral"},  {"vocab_size", 128},      {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 4}, {"num_local_experts", 8}, {"num_experts_per_tok", 2},
          {"rms_norm_eps", 1e-5},     {"rope_theta", 1e4},      {"max_position_embeddings", 128}};
}

nlohmann::json Experiment::glm4(Index experts, Index choices, Index shared, Index d_ff) {
  return {{"model_type", "glm4_moe"},
          {"vocab_size", 128},
          {"hidden_size", 64},
          {"intermediate_size", 2 * 96},
          {"moe_intermediate_size", d_ff},
          {"num_hidden_layers", 3},
          {"first_k_dense_replace", 0},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 4},
          {"head_dim", 16},
          {"partial_rotary_factor", 1.0},
          {"n_routed_experts", experts},
          {"n_shared_experts", shared},
          {"num_experts_per_tok", choices},
          {"n_group", 1},
          {"topk_group", 1},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.0},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1e4},
          {"max_position_embeddings", 128}};
}

TrainOptions Experiment::options() const {
  return {.steps = steps_,
          .batch = 12,
          .context = 128,
          .learning_rate = 3e-3,
          .warmup_steps = std::max<Index>(1, steps_ / 20),
          .balance_weight = 0.01};
}

std::vector<Result> Experiment::run(const std::vector<Variant>& variants, Index evaluations) const {
  std::vector<Result> results;
  results.reserve(variants.size());
  for (const Variant& variant : variants) results.push_back({variant.name, {}});
  const auto total = static_cast<Index>(variants.size() * seeds.size());
  Index done = 0;
  // Variants one after the other for each seed: a machine that gets slower slows down all of them.
  for (const std::uint64_t seed : seeds) {
    for (std::size_t i = 0; i < variants.size(); ++i) {
      const Variant& variant = variants[i];
      const std::string config = folder_ + "/" + variant.folder + ".json";
      write_file(config, variant.config.dump(1) + "\n");
      TrainRequest request;
      request.text = data_file("training/jargon_train.txt");
      request.evaluation = data_file("jargon_eval.txt");
      request.config = config;
      request.dense = variant.dense;
      request.out = folder_ + "/" + variant.folder + "-" + std::to_string(seed);
      request.resume = true;
      request.save_every = std::numeric_limits<Index>::max();
      request.options = variant.options;
      request.options.seed = seed;
      request.evaluate_every = std::max<Index>(1, request.options.steps / evaluations);
      ++done;
      const bool is_terminal = isatty(STDERR_FILENO) != 0;
      results[i].runs.push_back(
          language_model::training::train(request, [&](const LogEntry& entry) {
            if (is_terminal && entry.step % 10 == 0)
              std::fprintf(stderr, "\rrun %td of %td (%s): step %td, loss %.3f \033[K", done, total,
                           variant.name.c_str(), entry.step, entry.loss);
          }));
      if (is_terminal) std::fputs("\r\033[K", stderr);
    }
  }
  return results;
}

void Experiment::write_table(const std::vector<std::string>& head,
                             const std::vector<std::vector<std::string>>& rows) const {
  std::string text;
  const auto add = [&](const std::vector<std::string>& cells) {
    text += "|";
    for (const std::string& cell : cells) text += " " + cell + " |";
    text += "\n";
  };
  add(head);
  add(std::vector<std::string>(head.size(), "---"));
  for (const auto& row : rows) add(row);
  std::fputs(text.c_str(), stdout);
  write_file(folder_ + "/table.md", text);
}

void Experiment::plot(const std::string& name, const std::string& label,
                      const std::vector<Result>& results,
                      const std::function<double(const LogEntry&)>& figure, Index group,
                      Axis axis) const {
  std::ostringstream script;
  std::ostringstream draw;
  draw << "plot ";
  for (std::size_t i = 0; i < results.size(); ++i) {
    std::vector<std::vector<std::pair<double, double>>> of_seeds;
    for (const Run& run : results[i].runs) of_seeds.push_back(grouped(run, figure, group, axis));
    script << "$d" << i << " << EOD\n";
    for (std::size_t p = 0; p < of_seeds[0].size(); ++p) {
      double least = std::numeric_limits<double>::infinity();
      double most = -least;
      double place = 0;
      double sum = 0;
      for (const auto& points : of_seeds) {
        least = std::min(least, points[p].second);
        most = std::max(most, points[p].second);
        place += points[p].first;
        sum += points[p].second;
      }
      const auto count = static_cast<double>(of_seeds.size());
      script << place / count << ' ' << sum / count << ' ' << least << ' ' << most << '\n';
    }
    script << "EOD\n";
    const std::string data = "$d" + std::to_string(i);
    const std::string colour = std::string(" lc rgb '") + colours[i % colours.size()] + "'";
    draw << (i > 0 ? ", " : "") << data << " using 1:3:4 with filledcurves fs transparent solid 0.2"
         << colour << " notitle, " << data << " using 1:2 with lines lw 2" << colour << " title "
         << language_model::training::quoted(results[i].name);
  }
  script << "set xlabel '" << (axis == Axis::steps ? "step" : "seconds of training")
         << "'\nset ylabel '" << label << "'\nset grid lc rgb '#dddddd'\nset key top right\n"
         << "draw = \"" << draw.str() << "\"\n";
  language_model::training::draw_picture(script.str(), folder_ + "/" + name);
}

double at_the_end(const Run& run, const std::function<double(const LogEntry&)>& figure) {
  const std::size_t count = std::max<std::size_t>(1, run.size() / 10);
  double sum = 0;
  for (std::size_t i = run.size() - count; i < run.size(); ++i) sum += figure(run[i]);
  return sum / static_cast<double>(count);
}

double final_loss(const Run& run) {
  return run.back().evaluation;
}

int report_errors(const std::string& name, const std::function<void()>& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
    return 1;
  }
}

}  // namespace experiments
