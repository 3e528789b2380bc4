// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A small language model at work: `generate` writes, `evaluate` measures, `train` makes one.
#include <array>
#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <CLI/CLI.hpp>

#include "language_model/bytes.hpp"
#include "language_model/evaluate.hpp"
#include "language_model/generate.hpp"
#include "language_model/quantized.hpp"
#include "language_model/report.hpp"
#include "language_model/stopwatch.hpp"
#include "language_model/training/command.hpp"

namespace language_model {
namespace {

struct Options {
  std::string model;
  QuantizedOptions quantized;
  int threads = 0;  // 0 leaves the choice to OpenMP
  GenerateOptions generate;
  std::string text;
  Index context = 128;
  std::string json;
  training::TrainCommand train;
};

void write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw std::runtime_error("the standard output cannot be written");
}

void set_threads([[maybe_unused]] int threads) {
#if defined(_OPENMP)
  if (threads > 0) omp_set_num_threads(threads);
#endif
}

Model<float> load_model(const moe::io::Checkpoint& checkpoint, const Options& options) {
  const QuantizedOptions& quantized = options.quantized;
  if (!quantized.weights.empty() || !quantized.packed.empty())
    return quantized_model(checkpoint, quantized);
  if (quantized.weight_only)
    throw std::invalid_argument("--weight-only goes with --weights or --packed");
  return Model<float>(checkpoint);
}

void run_generate(const Options& options) {
  const Model<float> model = load_model(moe::io::Checkpoint::open(options.model), options);
  const GenerateTimes times = generate(model, options.generate, write_out);
  std::array<char, 160> line{};
  std::snprintf(
      line.data(), line.size(),
      "\n\nprefill %td tokens, %.0f tokens/s; decode %td tokens, %.0f tokens/s\n",
      times.prefill_tokens, rate(static_cast<double>(times.prefill_tokens), times.prefill_seconds),
      times.decode_tokens, rate(static_cast<double>(times.decode_tokens), times.decode_seconds));
  write_out(line.data());
}

void run_evaluate(const Options& options) {
  const auto checkpoint = moe::io::Checkpoint::open(options.model);
  const Model<float> model = load_model(checkpoint, options);
  const std::string text = read_file(options.text);
  std::vector<std::string> inputs = checkpoint.tensors().files();
  inputs.insert(inputs.end(), {checkpoint.config_source(), options.text, options.quantized.packed,
                               options.quantized.calibrate});
  for (const std::string& input : inputs)
    if (is_same_file(options.json, input))
      throw std::invalid_argument(options.json + ": is an input, so it is not overwritten");
  std::optional<OutputFile> json;  // Opened first: an evaluation may take long.
  if (!options.json.empty()) json.emplace(options.json);
  Progress progress;
  if (isatty(STDERR_FILENO) != 0) {
    progress = [](Index done, Index total) {
      std::fprintf(stderr, done < total ? "\rwindow %td of %td" : "\r\033[K", done, total);
    };
  }
  const Evaluation evaluation = evaluate(model, text, options.context, progress);
  if (json) json->commit(json_report(evaluation).dump(1) + "\n");
  write_out(printed_report(evaluation));
}

void add_threads(CLI::App& command, Options& options) {
  command.add_option("--threads", options.threads, "worker threads; without it OpenMP decides")
      ->check(CLI::Range(1, 1024));
}

/// What CLI11 says of an empty name, such as an unset variable of a shell gives.
std::string refuse_empty(const std::string& name) {
  return name.empty() ? "an empty name" : "";
}

/// Adds what commands take that run a model.
void add_common(CLI::App& command, Options& options) {
  command
      .add_option("--model", options.model,
                  "a .safetensors file, a .safetensors.index.json or the folder of one")
      ->required();
  CLI::Option* const weights =
      command
          .add_option(
              "--weights", options.quantized.weights,
              "quantise the experts: int8, int8-g128, int4-g32, nl4-g32, mxfp4, fp8 ...; or "
              "the formats of gate and up, and of down: int4-g32,int8")
          ->check(refuse_empty);
  command
      .add_option("--packed", options.quantized.packed,
                  "take the experts from this packed file, which `quantize` made of the model")
      ->check(refuse_empty)
      ->excludes(weights);
  command.add_flag("--weight-only", options.quantized.weight_only,
                   "with --weights or --packed: round no activations, multiply floats");
  CLI::Option* const calibrate =
      command
          .add_option("--calibrate", options.quantized.calibrate,
                      "let errors of weights count as the beginning of this text multiplies them")
          ->check(refuse_empty)
          ->needs(weights);
  command
      .add_flag("--no-search", options.quantized.no_search,
                "take scales from the largest weights, not those of the least error")
      ->needs(weights)
      ->excludes(calibrate);
  add_threads(command, options);
}

void add_commands(CLI::App& app, Options& options) {
  CLI::App& generate = *app.add_subcommand("generate", "continue a prompt");
  add_common(generate, options);
  generate.add_option("--prompt", options.generate.prompt,
                      "what to continue; without it a new line is begun");
  generate.add_option("--tokens", options.generate.tokens, "bytes to write")->capture_default_str();
  SamplerOptions& sampler = options.generate.sampler;
  generate
      .add_option("--temperature", sampler.temperature,
                  "0 takes the most probable byte, more is bolder")
      ->capture_default_str();
  generate
      .add_option("--top-p", sampler.top_p,
                  "draw from the fewest bytes that together are this probable")
      ->capture_default_str();
  generate.add_option("--seed", sampler.seed, "of the random draws")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  generate
      .add_option("--context", options.generate.context,
                  "bytes that the model sees at most: beyond them it starts afresh from the later "
                  "half; without it the text ends at the model's positions")
      ->check(CLI::PositiveNumber);

  CLI::App& evaluate = *app.add_subcommand("evaluate", "measure how well a text is predicted");
  add_common(evaluate, options);
  evaluate.add_option("--text", options.text, "the text file")->required();
  evaluate.add_option("--context", options.context, "bytes of one window")->capture_default_str();
  evaluate.add_option("--json", options.json, "write the figures to this file, too")
      ->check(refuse_empty);
  add_threads(training::add_train_command(app, options.train), options);
}

int run(int argc, char** argv) {
  CLI::App app("A byte-level mixture-of-experts language model.", "language_model");
  app.require_subcommand(1);
  Options options;
  add_commands(app, options);
  try {
    app.parse(argc, argv);
    set_threads(options.threads);
    if (app.got_subcommand("generate")) run_generate(options);
    if (app.got_subcommand("evaluate")) run_evaluate(options);
    if (app.got_subcommand("train")) training::run_train(options.train);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "language_model: %s\n", error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "language_model: %s\n", error.what());
  }
  return 1;
}

}  // namespace
}  // namespace language_model

int main(int argc, char** argv) {
  return language_model::run(argc, argv);
}
