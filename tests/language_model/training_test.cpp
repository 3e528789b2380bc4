// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Training a transformer: its gradients against central differences, and what a step reports.
#include <cstddef>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>

#include "language_model/evaluate.hpp"
#include "language_model/tiny_families.hpp"
#include "language_model/training/model.hpp"
#include "language_model/training/product.hpp"
#include "support/differences.hpp"
#include "support/threads.hpp"

namespace training_test {

using language_model::Index;
using language_model::TinyCheckpoint;
using language_model::Token;
using language_model::training::Balance;
using language_model::training::StepReport;
using language_model::training::TrainableModel;
using language_model::training::TrainOptions;

moe::io::Checkpoint open(const TinyCheckpoint& tiny, const test_support::TemporaryFolder& folder) {
  tiny.write(folder);
  return moe::io::Checkpoint::open(folder.path());
}

struct Text {
  std::vector<Token> tokens;
  std::vector<Token> targets;

  Text(Index size, Index vocab) {
    for (Index i = 0; i <= size; ++i) {
      const auto token = static_cast<Token>((i * i + 3 * i / 2) % vocab);
      if (i < size) tokens.push_back(token);
      if (i > 0) targets.push_back(token);
    }
  }
};

/// All that a step minimises.
double total(const StepReport& report, const TrainOptions& options) {
  double sum = report.loss;
  for (const auto& layer : report.layers)
    sum += (options.balance_weight * layer.balance_loss + options.z_loss * layer.z_loss) /
           static_cast<double>(report.layers.size());
  return sum;
}

void expect_gradients(const TinyCheckpoint& tiny, const TrainOptions& options,
                      std::size_t coordinates = 50) {
  const test_support::TemporaryFolder folder;
  TrainableModel<double> model(open(tiny, folder), options);
  const Text text(18, model.config().vocab_size);
  const auto step = [&] { return model.step(text.tokens, text.targets, 2, 5); };
  model.zero_gradients();
  StepReport report = step();
  struct Slopes {
    std::string name;
    std::span<double> values;
    std::vector<double> gradient;
  };
  std::vector<Slopes> all;
  for (const auto& parameter : model.parameters())
    all.push_back(
        {parameter.name, parameter.values, {parameter.gradient.begin(), parameter.gradient.end()}});
  for (const auto& layer : report.layers) EXPECT_FALSE(layer.expert_load.empty());
  const auto loss = [&] {
    model.refresh(report);  // Packs a router's weights that moved.
    return total(step(), options);
  };
  for (const Slopes& slopes : all)
    test_support::expect_some_slopes(slopes.name, slopes.values.data(), slopes.gradient.data(),
                                     slopes.values.size(), loss, coordinates);
}

TEST(Training, GradientsOfEveryFamily) {
  expect_gradients(language_model::tiny_mixtral(), {.balance_weight = 0.3, .z_loss = 0.1});
  expect_gradients(language_model::tiny_qwen3(), {.balance_weight = 0.3});
  expect_gradients(language_model::tiny_glm4(true), {.balance = Balance::none});
}

/// Heads that fill a whole panel and a part of another.
TEST(Training, GradientsOfWideHeads) {
  expect_gradients(language_model::tiny_qwen3(40), {.balance = Balance::none}, 16);
}

TEST(Training, GradientsOfNoiseDropoutAndCapacity) {
  TrainOptions options{.balance = Balance::noise, .balance_weight = 0.2, .dropout = 0.3};
  options.expert_dropout = 0.2;
  expect_gradients(language_model::tiny_mixtral(), options);
  options.balance = Balance::aux;
  options.capacity = 1;
  expect_gradients(language_model::tiny_mixtral(), options);
}

TEST(Training, ALossIsThatOfTheModelThatRuns) {
  const test_support::TemporaryFolder folder;
  const auto checkpoint = open(language_model::tiny_qwen3(), folder);
  TrainableModel<double> trained(checkpoint, {.balance = Balance::none});
  const language_model::Model<double> model(checkpoint);
  std::string text;
  std::vector<Token> tokens;
  for (int i = 0; i < 17; ++i) {
    text.push_back(static_cast<char>(i * 7 % 23));
    tokens.push_back(text.back());
  }
  const auto evaluation = language_model::evaluate(model, text, 16);
  const auto report = trained.step({tokens.data(), 16}, {tokens.data() + 1, 16}, 1, 0);
  EXPECT_NEAR(report.loss, evaluation.nats_per_byte, 1e-12);
}

TEST(Training, ProductsRefuseOtherSizes) {
  using language_model::training::multiply;
  using language_model::training::multiply_transposed;
  moe::Matrix<float> a = moe::Matrix<float>::Ones(5, 7);
  moe::Matrix<float> b = moe::Matrix<float>::Ones(7, 40);
  moe::Matrix<float> c(5, 40);
  language_model::training::Panels<float> panels;
  panels.pack_columns(b);
  multiply<float>(a, panels, c);
  EXPECT_EQ(c(4, 39), 7);
  EXPECT_THROW(multiply<float>(b, panels, c), moe::ShapeError);
  EXPECT_THROW(multiply<float>(a, panels, a), moe::ShapeError);
  EXPECT_THROW(multiply_transposed<float>(a, panels, c), moe::ShapeError);
  moe::Matrix<float> wide(40, 40);
  multiply_transposed<float>(b, panels, wide);
  EXPECT_EQ(wide(39, 39), 7);
  EXPECT_THROW(multiply_transposed<float>(b, panels, c), moe::ShapeError);
}

TEST(Training, TheBitsDoNotDependOnTheNumberOfThreads) {
  const test_support::TemporaryFolder folder;
  const auto checkpoint = open(language_model::tiny_glm4(true), folder);
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 7}) {
    const test_support::ScopedThreads scope(threads);
    TrainableModel<float> model(checkpoint, {.z_loss = 0.1, .dropout = 0.1});
    const Text text(40 * 32, model.config().vocab_size);
    model.zero_gradients();
    model.step(text.tokens, text.targets, 40, 5);
    std::vector<float> all;
    for (const auto& parameter : model.parameters())
      all.insert(all.end(), parameter.gradient.begin(), parameter.gradient.end());
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

}  // namespace training_test
