// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The program through its command line: what it prints, where, and with which exit status.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <sys/wait.h>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <moe/io/tensors.hpp>

#include "language_model/bundled_model.hpp"
#include "language_model/tiny_families.hpp"
#include "language_model/tiny_training.hpp"

namespace language_model {
namespace program_test {

struct Outcome {
  int status = -1;
  std::string out;
  std::string error;
};

/// A word that the shell passes on as it is; the words here hold no single quotes.
std::string quoted(const std::string& word) {
  return "'" + word + "'";
}

Outcome run(const TemporaryFolder& folder, const std::vector<std::string>& arguments) {
  std::string command = quoted(MOE_LANGUAGE_MODEL);
  for (const std::string& argument : arguments) command.append(" ").append(quoted(argument));
  command.append(" >").append(quoted(folder.file("out")));
  command.append(" 2>").append(quoted(folder.file("error")));
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder.file("out")),
          read_file(folder.file("error"))};
}

/// The number behind `label` at the start of a line.
double printed(const std::string& text, const std::string& label) {
  const std::size_t found = ("\n" + text).find("\n" + label + " ");
  if (found == std::string::npos) return std::nan("");
  return std::strtod(text.c_str() + found + label.size(), nullptr);
}

TEST(Program, HelpIsNoError) {
  const TemporaryFolder folder;
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--help"},
                                                    {"generate", "--help"},
                                                    {"evaluate", "--help"},
                                                    {"train", "--help"}}) {
    const Outcome outcome = run(folder, arguments);
    EXPECT_EQ(outcome.status, 0);
    EXPECT_NE(outcome.out.find("Usage: language_model"), std::string::npos);
    EXPECT_EQ(outcome.error, "");
  }
}

/// What generate wrote before its last line, which tells the speed.
std::string generated(const Outcome& outcome) {
  const std::size_t end = outcome.out.rfind("\n\nprefill ");
  EXPECT_NE(end, std::string::npos) << outcome.out;
  return outcome.out.substr(0, end);
}

TEST(Program, GenerateContinuesThePrompt) {
  const TemporaryFolder folder;
  const auto prompt = reference()["greedy_prompt"].get<std::string>();
  const Outcome outcome = run(folder, {"generate", "--model", model_path, "--prompt", prompt,
                                       "--tokens", "200", "--temperature", "0", "--threads", "2"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(generated(outcome), prompt + reference()["greedy_200"].get<std::string>());
  EXPECT_NE(outcome.out.find("decode 199 tokens"), std::string::npos) << outcome.out;
}

TEST(Program, TrainLearnsWhatItIsTold) {
  const TemporaryFolder folder;
  folder.write("config.json", mixtral_config().dump());
  folder.write("text", text());
  std::vector<std::string> arguments{"train",
                                     "--config",
                                     folder.file("config.json"),
                                     "--text",
                                     folder.file("text"),
                                     "--evaluate",
                                     folder.file("text"),
                                     "--out",
                                     folder.file("run"),
                                     "--steps",
                                     "5",
                                     "--batch",
                                     "2",
                                     "--context",
                                     "16",
                                     "--lr",
                                     "0.01",
                                     "--warmup",
                                     "2",
                                     "--z-loss",
                                     "0.001",
                                     "--capacity",
                                     "1.25",
                                     "--dropout",
                                     "0.1",
                                     "--expert-dropout",
                                     "0.1",
                                     "--balance",
                                     "noise",
                                     "--seed",
                                     "3",
                                     "--threads",
                                     "2"};
  const Outcome outcome = run(folder, arguments);
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.out.find("step 5: training loss "), 0U) << outcome.out;
  EXPECT_NE(outcome.out.find("\nevaluation: "), std::string::npos) << outcome.out;
  const std::string csv = read_file(folder.file("run/log.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 6) << csv;
  const std::string lines = read_file(folder.file("run/log.jsonl"));
  const auto first = nlohmann::json::parse(lines.substr(0, lines.find('\n')));
  EXPECT_EQ(first["step"], 1);
  EXPECT_DOUBLE_EQ(first["learning_rate"].get<double>(), 0.005);
  EXPECT_GT(first["z_loss"].get<double>(), 0);
  EXPECT_GT(first["balance_loss"].get<double>(), 0);
  const auto saved = moe::io::Tensors::open(folder.file("run/step-5/optimizer")).metadata();
  const auto described = nlohmann::json::parse(saved.at("run"));
  EXPECT_EQ(described["batch"], 2);
  EXPECT_EQ(described["capacity"], 1.25);
  EXPECT_EQ(described["dropout"], 0.1);
  EXPECT_EQ(described["expert_dropout"], 0.1);
  EXPECT_EQ(described["seed"], 3);
  // A finished run is not begun again, but gone on with; a bad option is told of.
  EXPECT_EQ(run(folder, arguments).status, 1);
  arguments.emplace_back("--resume");
  EXPECT_EQ(run(folder, arguments).status, 0);
  arguments.emplace_back("--clip");
  arguments.emplace_back("nan");
  EXPECT_EQ(run(folder, arguments).status, 1);
}

TEST(Program, SeedDecidesTheText) {
  const TemporaryFolder folder;
  const auto text = [&](const std::string& seed) {
    return generated(
        run(folder, {"generate", "--model", model_path, "--tokens", "60", "--seed", seed}));
  };
  EXPECT_EQ(text("5"), text("5"));
  EXPECT_NE(text("5"), text("6"));
}

TEST(Program, ContextLetsTheTextGrow) {
  const TemporaryFolder folder;
  const Outcome outcome = run(folder, {"generate", "--model", model_path, "--prompt", "hacker",
                                       "--tokens", "600", "--context", "20"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(generated(outcome).size(), 6U + 600U);
}

TEST(Program, EvaluatesWeightsOfFewBits) {
  const TemporaryFolder folder;
  folder.write("text", first_windows(2));
  const auto nats = [&](const std::vector<std::string>& options) {
    std::vector<std::string> arguments{"evaluate", "--model", model_path, "--text",
                                       folder.file("text")};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome outcome = run(folder, arguments);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    return printed(outcome.out, "nats per byte");
  };
  const double floats = nats({});
  const double integer = nats({"--weights", "int8"});
  const double widened = nats({"--weights", "int8", "--weight-only"});
  const double mixed = nats({"--weights", "nl4-g32,int8", "--no-search"});
  for (const double value : {integer, widened, mixed}) {
    EXPECT_NE(value, floats);
    EXPECT_NEAR(value, floats, 0.02);
  }
  EXPECT_NE(integer, widened);
  EXPECT_NE(integer, mixed);
}

TEST(Program, JsonHoldsWhatIsPrinted) {
  const TemporaryFolder folder;
  folder.write("text", first_windows(3) + "tail");
  const Outcome outcome = run(folder, {"evaluate", "--model", model_path, "--text",
                                       folder.file("text"), "--json", folder.file("json")});
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  const auto json = nlohmann::json::parse(read_file(folder.file("json")));

  // Seven decimals are printed.
  EXPECT_NEAR(printed(outcome.out, "nats per byte"), json["nats_per_byte"].get<double>(), 5.1e-8);
  EXPECT_NEAR(printed(outcome.out, "bits per byte"), json["bits_per_byte"].get<double>(), 5.1e-8);
  EXPECT_NEAR(printed(outcome.out, "perplexity"), json["perplexity"].get<double>(), 5.1e-8);
  EXPECT_EQ(printed(outcome.out, "predictions"), 3 * 128 + 4);
  EXPECT_EQ(json["predictions"], 3 * 128 + 4);
  EXPECT_EQ(json["windows"], 4);
  EXPECT_EQ(json["context"], 128);
  EXPECT_GT(json["tokens_per_second"].get<double>(), 0);
  // The three figures are one, to the rounding of a logarithm and an exponential.
  const double nats = json["nats_per_byte"].get<double>();
  EXPECT_NEAR(json["bits_per_byte"].get<double>() * std::log(2.0), nats, 1e-14);
  EXPECT_NEAR(std::log(json["perplexity"].get<double>()), nats, 1e-14);

  ASSERT_EQ(json["layers"].size(), 4U);
  for (std::size_t n = 0; n < 4; ++n) {
    const auto& layer = json["layers"][n];
    EXPECT_EQ(layer["layer"], n);
    for (const char* list : {"expert_load", "max_violation", "entropy", "load_entropy"})
      EXPECT_EQ(json[list][n], layer[list]) << list;
    Index choices = 0;
    for (const Index load : layer["expert_load"].get<std::vector<Index>>()) choices += load;
    EXPECT_EQ(choices, 2 * (3 * 128 + 4));
    char row_end[40];
    std::snprintf(row_end, sizeof row_end, "%7.4f %8.4f %8.4f\n",
                  layer["max_violation"].get<double>(), layer["entropy"].get<double>(),
                  layer["load_entropy"].get<double>());
    EXPECT_NE(outcome.out.find(row_end), std::string::npos) << row_end << outcome.out;
  }
}

TEST(Program, EvaluateReportsOnlyLayersThatHaveExperts) {
  const TemporaryFolder folder;
  tiny_glm4(true).write(folder);
  folder.write("text", "any bytes: \xff\x80");
  const Outcome outcome =
      run(folder, {"evaluate", "--model", folder.path(), "--text", folder.file("text"), "--context",
                   "5", "--json", folder.file("json")});
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const auto json = nlohmann::json::parse(read_file(folder.file("json")));
  ASSERT_EQ(json["layers"].size(), 2U);
  EXPECT_EQ(json["layers"][0]["layer"], 1);
  EXPECT_EQ(json["windows"], 3);
}

/// One line on stderr that holds `part`, nothing on stdout, status 1.
void expect_refusal(const TemporaryFolder& folder, const std::vector<std::string>& arguments,
                    const std::string& part) {
  const Outcome outcome = run(folder, arguments);
  EXPECT_EQ(outcome.status, 1) << part;
  EXPECT_EQ(outcome.out, "") << part;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  EXPECT_NE(outcome.error.find(part), std::string::npos) << outcome.error;
}

TEST(Program, GenerateRefusesBadRequests) {
  const TemporaryFolder folder;
  const auto refuse = [&](std::vector<std::string> more, const std::string& part) {
    more.insert(more.begin(), {"generate", "--model", model_path});
    expect_refusal(folder, more, part);
  };
  refuse({"--prompt", ""}, "prompt is empty");
  refuse({"--prompt", "caf\xc3\xa9"}, "the vocabulary cannot hold the byte 195 at position 3");
  refuse({"--prompt", "abc", "--tokens", "510"}, "512 positions");
  refuse({"--tokens", "0"}, "tokens");
  refuse({"--tokens", "-4"}, "tokens");
  refuse({"--tokens", "many"}, "tokens");
  refuse({"--temperature", "-1"}, "temperature");
  refuse({"--temperature", "nan"}, "temperature");
  refuse({"--top-p", "0"}, "top-p");
  refuse({"--top-p", "1.5"}, "top-p");
  refuse({"--seed", "-1"}, "--seed");
  refuse({"--context", "0"}, "--context");
  refuse({"--context", "513"}, "512");
  refuse({"--threads", "0"}, "--threads");
  refuse({"--volume", "11"}, "--volume");
  expect_refusal(folder, {}, "subcommand");
  expect_refusal(folder, {"generate"}, "--model is required");
}

TEST(Program, EvaluateRefusesBadRequests) {
  const TemporaryFolder folder;
  folder.write("text", "a text");
  folder.write("short", "a");
  folder.write("bytes", "abc\xe9");
  const auto refuse = [&](const std::string& text, std::vector<std::string> more,
                          const std::string& part) {
    more.insert(more.begin(), {"evaluate", "--model", model_path, "--text", folder.file(text)});
    expect_refusal(folder, more, part);
  };
  refuse("text", {"--context", "0"}, "context");
  refuse("text", {"--context", "-3"}, "context");
  refuse("text", {"--context", "513"}, "context must be 1 to 512");
  refuse("short", {}, "at least 2");
  refuse("bytes", {"--json", folder.file("json")}, "cannot hold the byte 233 at position 3");
  refuse("none", {}, "none: cannot be opened");
  refuse("", {}, "cannot be read");
  refuse("text", {"--json", folder.file("no_folder/json")}, "no_folder/json: cannot be written");
  refuse("text", {"--json", folder.path()}, "cannot be written");
  refuse("text", {"--json", folder.file("text")}, "is an input");
  refuse("text", {"--json", ""}, "an empty name");
  for (const char* const option : {"--weights", "--packed", "--calibrate"})
    refuse("text", {option, ""}, "an empty name");
  refuse("text", {"--weight-only"}, "--weight-only goes with");
  refuse("text", {"--weights", "int8", "--packed", "x"}, "--weights excludes --packed");
  refuse("text", {"--calibrate", folder.file("text")}, "--calibrate requires --weights");
  refuse("text", {"--weights", "int8", "--calibrate", folder.file("text"), "--no-search"},
         "--calibrate excludes --no-search");
  refuse("text", {"--packed", model_path}, "is no packed file");
  for (const char* const input : {"model.safetensors", "config.json"}) {
    const TemporaryFolder model;
    tiny_mixtral().write(model);
    const std::string before = read_file(model.file(input));
    expect_refusal(folder,
                   {"evaluate", "--model", model.path(), "--text", folder.file("text"), "--json",
                    model.file(input)},
                   "is an input");
    EXPECT_EQ(read_file(model.file(input)), before);
  }
  // A refused request leaves no file behind.
  EXPECT_FALSE(std::filesystem::exists(folder.file("json")));
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    EXPECT_EQ(entry.path().string().find(".part"), std::string::npos) << entry.path();
}

TEST(Program, WrongCheckpointsAreRefused) {
  const TemporaryFolder folder;
  const auto refuse = [&](const std::string& model, const std::string& part) {
    expect_refusal(folder, {"generate", "--model", model}, part);
  };
  refuse(folder.file("none.safetensors"), "none.safetensors");
  refuse(folder.path(), "found 0 and 0");
  refuse(text_path, text_path);
  TinyCheckpoint checkpoint = tiny_mixtral();
  checkpoint.remove("lm_head.weight");
  checkpoint.write(folder);
  refuse(folder.path(), "'lm_head.weight'");
  folder.write("config.json", "{");
  refuse(folder.path(), "config.json");
}

}  // namespace program_test
}  // namespace language_model
