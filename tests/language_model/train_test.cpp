// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Training runs: checkpoints, going on, logs, and what is refused.
#include "language_model/training/train.hpp"

#include <cmath>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <system_error>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <moe/io/checkpoint.hpp>
#include <moe/io/tensors.hpp>

#include "language_model/evaluate.hpp"
#include "language_model/tiny_training.hpp"
#include "language_model/training/initial.hpp"
#include "support/safetensors_writer.hpp"

namespace train_test {

using language_model::Index;
using language_model::mixtral_config;
using language_model::text;
using language_model::training::Balance;
using language_model::training::LogEntry;
using language_model::training::train;
using language_model::training::TrainRequest;
using test_support::TemporaryFolder;

nlohmann::json glm4_config() {
  return {{"model_type", "glm4_moe"},
          {"vocab_size", 128},
          {"hidden_size", 16},
          {"intermediate_size", 24},
          {"moe_intermediate_size", 12},
          {"num_hidden_layers", 2},
          {"first_k_dense_replace", 1},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 2},
          {"head_dim", 8},
          {"n_routed_experts", 4},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 2},
          {"n_group", 1},
          {"topk_group", 1},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.0},
          {"use_qk_norm", true},
          {"attention_bias", true},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1e4},
          {"max_position_embeddings", 64}};
}

/// Biases, a dense layer, experts in every second of the others, a tied head.
nlohmann::json qwen3_config() {
  return {{"model_type", "qwen3_moe"},
          {"vocab_size", 128},
          {"hidden_size", 16},
          {"intermediate_size", 24},
          {"moe_intermediate_size", 12},
          {"num_hidden_layers", 4},
          {"mlp_only_layers", {1}},
          {"decoder_sparse_step", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 12},
          {"num_experts", 4},
          {"num_experts_per_tok", 2},
          {"norm_topk_prob", true},
          {"attention_bias", true},
          {"tie_word_embeddings", true},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1e4},
          {"max_position_embeddings", 64}};
}

class Runs {
 public:
  explicit Runs(const nlohmann::json& config = mixtral_config()) {
    folder.write("config.json", config.dump());
    folder.write("text.txt", text());
  }

  TrainRequest request(const std::string& name) const {
    TrainRequest request;
    request.text = folder.file("text.txt");
    request.config = folder.file("config.json");
    request.out = folder.file(name);
    request.save_every = 4;
    request.options = {.steps = 10,
                       .batch = 3,
                       .context = 16,
                       .learning_rate = 1e-2,
                       .warmup_steps = 2,
                       .dropout = 0.1};
    return request;
  }

  std::string bytes(const std::string& name) const {
    std::ifstream stream(folder.file(name), std::ios::binary);
    EXPECT_TRUE(stream.good()) << name;
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  TemporaryFolder folder;
};

/// Trains until a step is done, then stops as if it had been killed.
void train_until(const TrainRequest& request, Index step) {
  struct Stop {};
  try {
    train(request, [&](const LogEntry& entry) {
      if (entry.step == step) throw Stop();
    });
  } catch (const Stop&) {
  }
}

TEST(Train, ARunThatWasStoppedGivesTheSameCheckpoint) {
  const std::pair<Balance, nlohmann::json> cases[] = {{Balance::aux, mixtral_config()},
                                                      {Balance::noise, mixtral_config()},
                                                      {Balance::aux, qwen3_config()},
                                                      {Balance::bias, glm4_config()}};
  for (const auto& [balance, config] : cases) {
    SCOPED_TRACE(config["model_type"].get<std::string>());
    const Runs runs(config);
    TrainRequest whole = runs.request("whole");
    whole.options.balance = balance;
    const std::vector<LogEntry> entries = train(whole);
    ASSERT_EQ(entries.size(), 10U);
    TrainRequest stopped = runs.request("stopped");
    stopped.options.balance = balance;
    train_until(stopped, 6);
    EXPECT_THROW(train(stopped), std::invalid_argument) << "would write over the run";
    stopped.resume = true;
    train_until(stopped, 9);
    const std::vector<LogEntry> again = train(stopped);
    ASSERT_EQ(again.size(), 10U);
    for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(again[i].loss, entries[i].loss) << i;
    for (const char* file :
         {"/step-10/model.safetensors", "/step-10/optimizer/moments.safetensors"})
      EXPECT_TRUE(runs.bytes(std::string("whole") + file) ==
                  runs.bytes(std::string("stopped") + file))
          << file;
    EXPECT_FALSE(std::filesystem::exists(runs.folder.file("whole/step-8"))) << "older ones go";
  }
}

TEST(Train, EveryFamilyLearnsAndTheModelThatIsWrittenRuns) {
  for (const auto& config : {mixtral_config(), qwen3_config(), glm4_config()}) {
    SCOPED_TRACE(config["model_type"].get<std::string>());
    const Runs runs(config);
    TrainRequest request = runs.request("run");
    request.evaluation = request.text;
    request.options.steps = 40;
    const std::vector<LogEntry> entries = train(request);
    EXPECT_LT(entries.back().loss, 0.8 * entries.front().loss);
    const language_model::Model<float> model(moe::io::Checkpoint::open(request.out + "/step-40"));
    const auto evaluation = language_model::evaluate(model, text(), 16);
    EXPECT_NEAR(evaluation.nats_per_byte, entries.back().evaluation, 1e-4);
  }
}

TEST(Train, MeasuresWhileItLearns) {
  const Runs runs;
  TrainRequest request = runs.request("run");
  request.evaluation = request.text;
  request.evaluate_every = 20;
  request.options.steps = 60;
  const std::vector<LogEntry> entries = train(request);
  EXPECT_LT(entries.back().loss, 0.7 * entries.front().loss);
  EXPECT_LT(entries[0].evaluation, 0);
  EXPECT_GT(entries[19].evaluation, entries.back().evaluation);
  ASSERT_EQ(entries[0].loads.size(), 2U);
  Index choices = 0;
  for (const Index load : entries[0].loads[1]) choices += load;
  EXPECT_EQ(choices, 3 * 16 * 2);
}

TEST(Train, BeginsFromAModel) {
  const Runs runs(glm4_config());
  TrainRequest first = runs.request("first");
  train(first);
  TrainRequest second = runs.request("second");
  second.config.clear();
  second.model = first.out + "/step-10";
  EXPECT_LT(train(second).front().loss, 0.9 * train(runs.request("third")).front().loss);
}

TEST(Train, ADenseTwinHasNoExpertsAndTheirWidth) {
  const auto twin = language_model::training::dense_twin(mixtral_config(), "config.json");
  EXPECT_EQ(twin.at("intermediate_size"), 24);
  const Runs runs;
  TrainRequest request = runs.request("dense");
  request.dense = true;
  request.options.balance = Balance::none;
  const std::vector<LogEntry> entries = train(request);
  EXPECT_TRUE(entries.back().loads.empty());
  EXPECT_LT(entries.back().loss, entries.front().loss);
  const language_model::Model<float> model(moe::io::Checkpoint::open(request.out + "/step-10"));
  EXPECT_GT(language_model::evaluate(model, text(), 16).nats_per_byte, 0);
}

TEST(Train, RefusesADenseTwinThatWouldBeAnotherModel) {
  const auto refuses = [](nlohmann::json config, const char* key, const nlohmann::json& value) {
    config[key] = value;
    EXPECT_THROW(language_model::training::dense_twin(config, "config.json"), std::invalid_argument)
        << key;
  };
  refuses(mixtral_config(), "sliding_window", 8);
  refuses(glm4_config(), "intermediate_size", 25);  // of the first layer, which is dense
}

TEST(Train, ALostLogIsToldOf) {
  const Runs runs;
  TrainRequest request = runs.request("run");
  train(request);
  request.resume = true;
  EXPECT_EQ(train(request).size(), 10U) << "nothing is left to do";
  std::filesystem::remove(request.out + "/log.jsonl");
  EXPECT_THROW(train(request), std::runtime_error);
}

TEST(Train, AGradientThatIsNotFiniteLeavesTheLastCheckpoint) {
  const Runs runs;
  TrainRequest request = runs.request("run");
  request.options.learning_rate = 1e30;  // The second step's gradient overflows.
  request.options.warmup_steps = 0;
  request.save_every = 1;
  EXPECT_THROW(train(request), std::runtime_error);
  const std::string checkpoint = request.out + "/step-1";
  ASSERT_TRUE(std::filesystem::exists(checkpoint));
  const auto tensors = moe::io::Tensors::open(checkpoint);
  EXPECT_TRUE(tensors.vector<float>("model.norm.weight", 16).allFinite());
}

TEST(Train, CapacityDropsAndABiasEvensLoads) {
  const Runs runs(glm4_config());
  TrainRequest tight = runs.request("tight");
  tight.options.capacity = 1;
  EXPECT_GT(train(tight).front().dropped, 0);
  TrainRequest loose = runs.request("loose");
  loose.options.balance = Balance::none;
  loose.options.steps = 80;
  TrainRequest biased = loose;
  biased.out = runs.folder.file("biased");
  biased.options.balance = Balance::bias;
  biased.options.bias_rate = 0.02;
  const auto mean_of = [](const std::vector<LogEntry>& entries) {
    double sum = 0;
    for (std::size_t i = entries.size() / 2; i < entries.size(); ++i)
      sum += entries[i].max_violation;
    return sum;
  };
  EXPECT_LT(mean_of(train(biased)), 0.7 * mean_of(train(loose)));
}

TEST(Train, TheLearningRateRisesAndFalls) {
  const language_model::training::TrainOptions options{
      .steps = 110, .learning_rate = 2, .warmup_steps = 10, .final_rate = 0.05};
  const auto rate = [&](Index step) {
    return language_model::training::learning_rate(options, step);
  };
  EXPECT_DOUBLE_EQ(rate(1), 0.2);
  EXPECT_DOUBLE_EQ(rate(10), 2);
  EXPECT_NEAR(rate(60), 2 * (0.05 + 0.95 / 2), 1e-12);
  EXPECT_NEAR(rate(110), 0.1, 1e-12);
}

TEST(Train, AFullDiskLeavesTheLastCheckpoint) {
  const Runs runs;
  TrainRequest request = runs.request("run");
  train_until(request, 5);
  const std::string before = runs.bytes("run/step-4/model.safetensors");
  request.resume = true;
  // Files may grow to 20 KB only: the logs fit, a checkpoint does not.
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{20000, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(train(request), std::system_error);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(runs.bytes("run/step-4/model.safetensors"), before);
  EXPECT_FALSE(std::filesystem::exists(runs.folder.file("run/partial")));
  EXPECT_EQ(train(request).size(), 10U);
}

TEST(Train, RefusesWhatMakesNoSense) {
  const Runs runs;
  const auto refuses = [&](auto&& change) {
    TrainRequest request = runs.request("refused");
    change(request);
    EXPECT_THROW(train(request), std::invalid_argument);
    EXPECT_FALSE(std::filesystem::exists(request.out + "/log.csv"));
    EXPECT_FALSE(std::filesystem::exists(request.out + "/initial.safetensors"));
  };
  refuses([](TrainRequest& r) { r.options.steps = 0; });
  refuses([](TrainRequest& r) { r.options.context = 100000; });
  refuses([](TrainRequest& r) { r.options.dropout = 1; });
  refuses([](TrainRequest& r) { r.options.capacity = -1; });
  refuses([](TrainRequest& r) { r.options.capacity = std::nan(""); });
  refuses([](TrainRequest& r) { r.options.clip = std::nan(""); });
  refuses([](TrainRequest& r) { r.options.weight_decay = -1; });
  refuses([](TrainRequest& r) { r.options.final_rate = 2; });
  refuses([](TrainRequest& r) { r.options.bias_rate = std::nan(""); });
  refuses([](TrainRequest& r) { r.options.z_loss = HUGE_VAL; });
  refuses([&](TrainRequest& r) {
    nlohmann::json config = mixtral_config();
    config["router_jitter_noise"] = 0.1;
    r.config = runs.folder.write("jitter.json", config.dump());
    r.options.balance = Balance::noise;
  });
  refuses([](TrainRequest& r) { r.config.clear(); });
  refuses([](TrainRequest& r) { r.model = "model"; });
  refuses([](TrainRequest& r) { r.options.balance = Balance::bias; });  // Mixtral has none.
  refuses([&](TrainRequest& r) { r.text = runs.folder.write("short.txt", "short"); });
  refuses([&](TrainRequest& r) {
    r.text = runs.folder.write("wide.txt", text() + "\xc3\xa4" + text());
  });
  refuses([&](TrainRequest& r) { r.evaluation = runs.folder.write("short.txt", "short"); });
  TrainRequest missing = runs.request("refused");
  missing.text = "nowhere.txt";
  EXPECT_THROW(train(missing), std::system_error);
  TrainRequest unknown = runs.request("refused");
  unknown.config = runs.folder.write("unknown.json", R"({"model_type": "lstm"})");
  EXPECT_THROW(train(unknown), moe::FormatError);
  nlohmann::json misspelt = mixtral_config();
  misspelt["num_expert_per_tok"] = 1;
  unknown.config = runs.folder.write("unknown.json", misspelt.dump());
  EXPECT_THROW(train(unknown), moe::FormatError);
  TrainRequest run = runs.request("run");
  train_until(run, 5);
  run.resume = true;
  run.options.learning_rate = 1;
  EXPECT_THROW(train(run), std::invalid_argument) << "another run";
}

}  // namespace train_test
