// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See train.hpp.
#include "language_model/training/train.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/json.hpp>
#include <moe/losses/metrics.hpp>

#include "language_model/bytes.hpp"
#include "language_model/stopwatch.hpp"
#include "language_model/training/adamw.hpp"
#include "language_model/training/checkpoint.hpp"
#include "language_model/training/initial.hpp"
#include "language_model/training/model.hpp"

namespace language_model::training {
namespace {

void check(bool holds, const std::string& problem) {
  if (!holds) throw std::invalid_argument(problem);
}

void check_request(const TrainRequest& request) {
  const TrainOptions& options = request.options;
  check(options.steps > 0, "steps must be positive");
  check(options.batch > 0, "batch must be positive");
  check(options.context > 0, "context must be positive");
  check(std::isfinite(options.learning_rate) && options.learning_rate > 0,
        "the learning rate must be positive");
  check(options.warmup_steps >= 0, "warmup steps must not be negative");
  check(options.dropout >= 0 && options.dropout < 1, "dropout must be at least 0 and below 1");
  check(options.expert_dropout >= 0 && options.expert_dropout < 1,
        "expert dropout must be at least 0 and below 1");
  check(std::isfinite(options.capacity) && options.capacity >= 0, "capacity must not be negative");
  for (const double value : {options.z_loss, options.balance_weight, options.bias_rate,
                             options.weight_decay, options.clip})
    check(std::isfinite(value) && value >= 0,
          "coefficients of losses, the bias rate, weight decay and clip must not be negative");
  check(options.final_rate >= 0 && options.final_rate <= 1,
        "the final learning rate is a share, from 0 to 1");
  check(request.save_every > 0, "steps between checkpoints must be positive");
  check(request.evaluate_every >= 0, "steps between evaluations must not be negative");
  check(request.config.empty() != request.model.empty(),
        "a run begins from a configuration or from a model: give one of both");
  check(!request.dense || request.model.empty(),
        "a dense twin begins from a configuration, not from a model");
}

nlohmann::json read_config_file(const std::string& path) {
  nlohmann::json json = moe::io::detail::parse_json(read_file(path), path, 0);
  if (!json.is_object()) throw moe::FormatError(path, "", 0, "the configuration is no JSON object");
  return json;
}

/// What must be the same when a run goes on.
nlohmann::json describe(const TrainRequest& request, const nlohmann::json& config,
                        const std::vector<Token>& text) {
  const TrainOptions& options = request.options;
  std::uint64_t digest = text.size();
  for (const Token token : text)
    digest = moe::detail::mix_bits(digest ^ static_cast<std::uint64_t>(token));
  return {{"text", digest},
          {"config", config},
          {"model", request.model},
          {"steps", options.steps},
          {"batch", options.batch},
          {"context", options.context},
          {"lr", options.learning_rate},
          {"warmup", options.warmup_steps},
          {"final_rate", options.final_rate},
          {"weight_decay", options.weight_decay},
          {"clip", options.clip},
          {"balance", static_cast<int>(options.balance)},
          {"balance_weight", options.balance_weight},
          {"bias_rate", options.bias_rate},
          {"z_loss", options.z_loss},
          {"capacity", options.capacity},
          {"dropout", options.dropout},
          {"expert_dropout", options.expert_dropout},
          {"seed", options.seed}};
}

/// A text and the windows that are cut from it.
class Corpus {
 public:
  Corpus(std::vector<Token> tokens, const TrainOptions& options)
      : tokens_(std::move(tokens)), options_(options) {}

  const std::vector<Token>& tokens() const noexcept { return tokens_; }

  /// Windows of a step, drawn from it and the seed alone.
  void draw(Index step, std::vector<Token>& inputs, std::vector<Token>& targets) const {
    inputs.clear();
    targets.clear();
    const auto places =
        static_cast<std::uint64_t>(tokens_.size()) - static_cast<std::uint64_t>(options_.context);
    for (Index window = 0; window < options_.batch; ++window) {
      const auto position = static_cast<std::uint64_t>(step * options_.batch + window);
      const auto begin = static_cast<std::ptrdiff_t>(
          moe::detail::mix_bits(moe::detail::mix_bits(options_.seed + 1) + position) % places);
      const auto first = tokens_.begin() + begin;
      inputs.insert(inputs.end(), first, first + options_.context);
      targets.insert(targets.end(), first + 1, first + 1 + options_.context);
    }
  }

  /// Mean nats over all windows that do not overlap, the last shorter one among them.
  double evaluate(TrainableModel<float>& model) const {
    const auto predictions = static_cast<Index>(tokens_.size()) - 1;
    const Index full = predictions / options_.context;
    double sum = 0;
    const auto add = [&](Index begin, Index windows, Index positions) {
      const auto size = static_cast<std::size_t>(windows * positions);
      const std::span<const Token> all = tokens_;
      sum += static_cast<double>(size) *
             model.evaluate(all.subspan(static_cast<std::size_t>(begin), size),
                            all.subspan(static_cast<std::size_t>(begin) + 1, size), windows);
    };
    for (Index window = 0; window < full; window += options_.batch)
      add(window * options_.context, std::min(options_.batch, full - window), options_.context);
    if (predictions > full * options_.context)
      add(full * options_.context, 1, predictions - full * options_.context);
    return sum / static_cast<double>(predictions);
  }

 private:
  std::vector<Token> tokens_;
  TrainOptions options_;
};

Corpus read_corpus(const std::string& path, const ModelConfig& config,
                   const TrainOptions& options) {
  std::vector<Token> tokens = to_tokens(read_file(path), config.vocab_size, path);
  if (static_cast<Index>(tokens.size()) <= options.context)
    throw std::invalid_argument(path + ": the text has " + std::to_string(tokens.size()) +
                                " bytes, a window takes " + std::to_string(options.context + 1));
  return {std::move(tokens), options};
}

/// Means over the layers.
void add_layers(const std::vector<LayerStep>& layers, LogEntry& entry) {
  Index experts = 0;
  Index dead = 0;
  for (const LayerStep& layer : layers) {
    const auto share = 1 / static_cast<double>(layers.size());
    entry.balance_loss += share * layer.balance_loss;
    entry.z_loss += share * layer.z_loss;
    entry.dropped += share * layer.dropped;
    entry.max_violation += share * moe::metrics::max_violation(layer.expert_load);
    experts += static_cast<Index>(layer.expert_load.size());
    dead += std::count(layer.expert_load.begin(), layer.expert_load.end(), Index{0});
    entry.loads.push_back(layer.expert_load);
  }
  if (experts > 0) entry.dead_experts = static_cast<double>(dead) / static_cast<double>(experts);
}

/// Removes a file at the end of its life.
struct Temporary {
  std::string path;
  explicit Temporary(std::string its_path) : path(std::move(its_path)) {}
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

}  // namespace

double learning_rate(const TrainOptions& options, Index step) {
  const double at = options.learning_rate;
  if (step <= options.warmup_steps)
    return at * static_cast<double>(step) / static_cast<double>(options.warmup_steps);
  const double done = static_cast<double>(step - options.warmup_steps) /
                      static_cast<double>(std::max<Index>(1, options.steps - options.warmup_steps));
  const double cosine = (1 + std::cos(std::numbers::pi * done)) / 2;
  return at * (options.final_rate + (1 - options.final_rate) * cosine);
}

std::vector<LogEntry> train(const TrainRequest& request, const StepObserver& observer) {
  check_request(request);
  const TrainOptions& options = request.options;
  const RunFolder folder(request.out);
  const std::optional<Index> latest = folder.latest();
  check(!latest || request.resume, request.out + " has a checkpoint of step " +
                                       std::to_string(latest.value_or(0)) +
                                       ": go on with --resume, or give another folder");

  // A run begins from a file too, so that all models are read in one way.
  std::string begin = latest ? folder.checkpoint(*latest) : request.model;
  nlohmann::json config;
  if (!request.config.empty()) {
    config = read_config_file(request.config);
    check_fields(config, request.config);
    if (request.dense) config = dense_twin(config, request.config);
  }
  const std::string initial = folder.file("initial.safetensors");
  std::optional<Temporary> temporary;
  if (begin.empty()) {
    temporary.emplace(initial);
    OutputFile file(initial);
    file.commit(initial_checkpoint(config, request.config, options.seed));
    begin = initial;
  }
  const auto checkpoint = moe::io::Checkpoint::open(begin);
  if (config.is_null()) config = checkpoint.config();
  TrainableModel<float> model(checkpoint, options);
  temporary.reset();  // The model is read, so that a run which is killed does not leave it.
  check(options.context <= model.config().max_positions,
        "the context is longer than the model's positions");
  const Corpus corpus = read_corpus(request.text, model.config(), options);
  std::optional<Corpus> evaluation;
  if (!request.evaluation.empty())
    evaluation = read_corpus(request.evaluation, model.config(), options);

  const Parameters<float> parameters = model.parameters();
  AdamW<float> optimizer(parameters);
  const nlohmann::json run = describe(request, config, corpus.tokens());
  if (latest) folder.load(*latest, run, parameters, optimizer);
  Log log(folder.file("log.csv"), folder.file("log.jsonl"), latest.value_or(0));
  double seconds = log.entries().empty() ? 0 : log.entries().back().seconds;

  std::vector<Token> inputs;
  std::vector<Token> targets;
  for (Index step = latest.value_or(0) + 1; step <= options.steps; ++step) {
    const Stopwatch stopwatch;
    corpus.draw(step, inputs, targets);
    model.zero_gradients();
    const StepReport report = model.step(inputs, targets, options.batch,
                                         moe::detail::mix_bits(options.seed * 0x9e3779b97f4a7c15U +
                                                               static_cast<std::uint64_t>(step)));
    if (!std::isfinite(report.loss))
      throw std::runtime_error("step " + std::to_string(step) + ": the loss is not finite");
    LogEntry entry;
    entry.step = step;
    entry.loss = report.loss;
    entry.learning_rate = learning_rate(options, step);
    entry.gradient_norm =
        optimizer.step(parameters, step, entry.learning_rate, options.weight_decay, options.clip);
    if (!std::isfinite(entry.gradient_norm))
      throw std::runtime_error("step " + std::to_string(step) + ": the gradient is not finite");
    model.refresh(report);
    add_layers(report.layers, entry);
    const double time = stopwatch.seconds();
    seconds += time;
    entry.seconds = seconds;
    entry.tokens_per_second = rate(static_cast<double>(inputs.size()), time);
    const bool is_last = step == options.steps;
    if (evaluation &&
        (is_last || (request.evaluate_every > 0 && step % request.evaluate_every == 0)))
      entry.evaluation = evaluation->evaluate(model);
    log.add(entry);
    if (is_last || step % request.save_every == 0)
      folder.save(step, config, run, model, parameters, optimizer);
    if (observer) observer(entry);
  }
  if (log.entries().empty())
    throw std::runtime_error(request.out + " is complete, but its log.jsonl is missing or empty");
  return log.entries();
}

}  // namespace language_model::training
