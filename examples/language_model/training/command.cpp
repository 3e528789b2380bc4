// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See command.hpp.
#include "language_model/training/command.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <string>
#include <unistd.h>

#include "language_model/training/plot.hpp"

namespace language_model::training {
namespace {

/// Bar, loss, tokens/s, MaxVio and the time that is left, over the line before.
void show_progress(const LogEntry& entry, Index steps, Index first_step, double first_seconds) {
  constexpr Index width = 20;
  std::array<char, width + 1> bar{};
  std::fill_n(bar.begin(), width, '.');
  std::fill_n(bar.begin(), width * entry.step / steps, '#');
  const auto done = static_cast<double>(entry.step - first_step + 1);
  const double left =
      (entry.seconds - first_seconds) / done * static_cast<double>(steps - entry.step);
  std::fprintf(stderr,
               "\r[%s] step %td of %td  loss %.4f  %.0f tokens/s  MaxVio %.2f  %d:%02d left \033[K",
               bar.data(), entry.step, steps, entry.loss, entry.tokens_per_second,
               entry.max_violation, static_cast<int>(left) / 60, static_cast<int>(left) % 60);
  if (entry.step == steps) std::fputs("\r\033[K", stderr);
}

}  // namespace

CLI::App& add_train_command(CLI::App& app, TrainCommand& command) {
  CLI::App& train = *app.add_subcommand("train", "train a model on a text file");
  TrainRequest& request = command.request;
  TrainOptions& options = request.options;
  train.add_option("--text", request.text, "the text that is learnt")->required();
  train.add_option("--config", request.config,
                   "a config.json (mixtral, qwen3_moe, glm4_moe), to begin at random");
  train.add_option("--model", request.model, "a checkpoint, to begin from");
  train.add_flag(
      "--dense", request.dense,
      "the configuration's dense twin: one expert a layer, as wide as those that a token "
      "passes through together");
  train.add_option("--out", request.out, "the folder of the run: checkpoints, logs, pictures")
      ->required();
  train.add_flag("--resume", request.resume, "go on from the newest checkpoint in the folder");
  train.add_option("--evaluate", request.evaluation, "a text on which the model is measured");
  train
      .add_option("--evaluate-every", request.evaluate_every,
                  "steps between measurements; 0 measures at the end")
      ->capture_default_str();
  train.add_option("--save-every", request.save_every, "steps between checkpoints")
      ->capture_default_str();
  train.add_option("--steps", options.steps, "steps in all")->capture_default_str();
  train.add_option("--batch", options.batch, "windows of a step")->capture_default_str();
  train.add_option("--context", options.context, "bytes of a window")->capture_default_str();
  train.add_option("--lr", options.learning_rate, "largest learning rate")->capture_default_str();
  train.add_option("--warmup", options.warmup_steps, "steps in which the learning rate rises")
      ->capture_default_str();
  train.add_option("--final-lr", options.final_rate, "share of it that is left at the end")
      ->capture_default_str();
  train.add_option("--weight-decay", options.weight_decay, "of matrices")->capture_default_str();
  train.add_option("--clip", options.clip, "largest norm of the gradient; 0 for none")
      ->capture_default_str();
  const std::map<std::string, Balance> balances{{"none", Balance::none},
                                                {"aux", Balance::aux},
                                                {"noise", Balance::noise},
                                                {"bias", Balance::bias}};
  train
      .add_option(
          "--balance", options.balance,
          "what keeps loads even: the load-balancing loss (aux), importance and load losses "
          "with noise (noise), a selection bias (bias, glm4_moe only), or none")
      ->transform(CLI::CheckedTransformer(balances, CLI::ignore_case))
      ->default_str("aux");
  train.add_option("--balance-weight", options.balance_weight, "coefficient of these losses")
      ->capture_default_str();
  train.add_option("--bias-rate", options.bias_rate, "step of the selection bias")
      ->capture_default_str();
  train.add_option("--z-loss", options.z_loss, "coefficient of the z-loss")->capture_default_str();
  train
      .add_option(
          "--capacity", options.capacity,
          "rows of an expert over the even share, beyond which choices are dropped; 0 for no "
          "limit")
      ->capture_default_str();
  train.add_option("--dropout", options.dropout, "of what attention and experts add")
      ->capture_default_str();
  train.add_option("--expert-dropout", options.expert_dropout, "of hidden values inside experts")
      ->capture_default_str();
  train.add_option("--seed", options.seed, "of weights, windows, noise and dropout")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  train.add_flag("--plot", command.plots, "draw loss and loads as SVG and PNG, with gnuplot");
  return train;
}

void run_train(const TrainCommand& command) {
  if (command.plots) check_gnuplot();
  const bool is_terminal = isatty(STDERR_FILENO) != 0;
  Index first_step = 0;
  double first_seconds = 0;
  const std::vector<LogEntry> entries = train(command.request, [&](const LogEntry& entry) {
    if (first_step == 0) {
      first_step = entry.step;
      first_seconds = entry.seconds - 1 / std::max(entry.tokens_per_second, 1e-9) *
                                          static_cast<double>(command.request.options.batch *
                                                              command.request.options.context);
    }
    if (is_terminal) show_progress(entry, command.request.options.steps, first_step, first_seconds);
  });
  const LogEntry& last = entries.back();
  std::printf("step %td: training loss %.4f nats per byte, MaxVio %.3f, %.0f s\n", last.step,
              last.loss, last.max_violation, last.seconds);
  if (last.evaluation >= 0) std::printf("evaluation: %.4f nats per byte\n", last.evaluation);
  if (command.plots) plot(entries, command.request.out);
}

}  // namespace language_model::training
