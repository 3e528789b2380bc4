// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>

#include "support/layers.hpp"
#include "support/safetensors_writer.hpp"

namespace checkpoint_test {

using moe::Index;
using moe::Matrix;
using moe::io::Checkpoint;
using test_support::random_matrix;
using test_support::SafetensorsWriter;
using test_support::TemporaryFolder;

constexpr Index d_model = 6;
constexpr Index d_ff = 10;
constexpr Index num_experts = 4;

/// One family as its checkpoints are published.
struct Family {
  nlohmann::json config;
  std::string block;
  std::string gate;
  std::string up;
  std::string down;
  bool has_selection_bias = false;
  Index num_shared = 0;
  moe::RoutingRule rule;
};

std::vector<Family> families() {
  const nlohmann::json common = {{"hidden_size", d_model}, {"num_experts_per_tok", 2}};
  const auto with = [&](nlohmann::json fields) {
    fields.update(common);
    return fields;
  };
  const nlohmann::json biased = {{"moe_intermediate_size", d_ff},
                                 {"n_routed_experts", num_experts},
                                 {"n_shared_experts", 2},
                                 {"n_group", 2},
                                 {"topk_group", 1},
                                 {"norm_topk_prob", true},
                                 {"routed_scaling_factor", 2.5}};
  const moe::presets::BiasedSigmoid options{.groups = 2, .groups_kept = 1, .scale = 2.5};
  std::vector<Family> all{
      {with({{"model_type", "mixtral"},
             {"intermediate_size", d_ff},
             {"num_local_experts", num_experts}}),
       "block_sparse_moe.", "w1", "w3", "w2", false, 0, moe::presets::mixtral()},
      {with({{"model_type", "qwen3_moe"},
             {"moe_intermediate_size", d_ff},
             {"num_experts", num_experts},
             {"norm_topk_prob", true}}),
       "mlp.", "gate_proj", "up_proj", "down_proj", false, 0, moe::presets::qwen3_moe()},
      {with({{"model_type", "olmoe"}, {"intermediate_size", d_ff}, {"num_experts", num_experts}}),
       "mlp.", "gate_proj", "up_proj", "down_proj", false, 0, moe::presets::olmoe()},
      {with(biased), "mlp.", "gate_proj", "up_proj", "down_proj", true, 2,
       moe::presets::glm4_moe(options)},
      {with(biased), "mlp.", "gate_proj", "up_proj", "down_proj", true, 2,
       moe::presets::deepseek_v3(options)}};
  all[3].config["model_type"] = "glm4_moe";
  all[4].config["model_type"] = "deepseek_v3";
  return all;
}

/// Layer 1 of a model with random weights.
SafetensorsWriter checkpoint_of(const Family& family) {
  SafetensorsWriter writer;
  std::uint64_t seed = 100;
  const auto add = [&](const std::string& name, Index rows, Index cols) {
    writer.add("model.layers.1." + family.block + name + ".weight",
               random_matrix<float>(rows, cols, ++seed));
  };
  const auto add_expert = [&](const std::string& prefix, Index width) {
    add(prefix + family.gate, width, d_model);
    add(prefix + family.up, width, d_model);
    add(prefix + family.down, d_model, width);
  };
  add("gate", num_experts, d_model);
  if (family.has_selection_bias)
    writer.add_vector("model.layers.1." + family.block + "gate.e_score_correction_bias",
                      random_matrix<float>(num_experts, 1, ++seed));
  for (Index e = 0; e < num_experts; ++e) add_expert("experts." + std::to_string(e) + ".", d_ff);
  if (family.num_shared > 0) add_expert("shared_experts.", d_ff * family.num_shared);
  return writer;
}

Checkpoint written(const TemporaryFolder& folder, const Family& family,
                   const SafetensorsWriter& writer) {
  folder.write("config.json", family.config.dump());
  return Checkpoint::open(folder.write("model.safetensors", writer.bytes()));
}

TEST(Checkpoint, GivesALayerOfEveryFamily) {
  for (const Family& family : families()) {
    const TemporaryFolder folder;
    const Checkpoint checkpoint = written(folder, family, checkpoint_of(family));
    auto layer = checkpoint.layer<double>(1);
    const auto read = [&](const std::string& name, Index rows, Index cols) {
      return checkpoint.tensors().matrix<double>("model.layers.1." + family.block + name, rows,
                                                 cols);
    };
    const auto expert = [&](const std::string& prefix, Index width) {
      return reference::Expert{read(prefix + family.gate + ".weight", width, d_model),
                               read(prefix + family.up + ".weight", width, d_model),
                               read(prefix + family.down + ".weight", d_model, width),
                               {},
                               {},
                               {}};
    };
    std::vector<reference::Expert> experts;
    for (Index e = 0; e < num_experts; ++e)
      experts.push_back(expert("experts." + std::to_string(e) + ".", d_ff));
    std::vector<reference::Expert> shared;
    if (family.num_shared > 0)
      shared.push_back(expert("shared_experts.", d_ff * family.num_shared));
    reference::Values bias;
    if (family.has_selection_bias)
      bias = reference::row_of(read("gate.e_score_correction_bias", num_experts, 1).transpose(), 0);

    const auto x = random_matrix<double>(20, d_model, 5);
    Matrix<double> y(20, d_model);  // (T, D)
    const auto& routing = layer.forward(x, y);
    const auto router = read("gate.weight", num_experts, d_model);
    for (Index t = 0; t < 20; ++t) {
      const reference::Choice choice = reference::choose(
          family.rule, reference::linear(router, reference::row_of(x, t)), bias, 2);
      for (Index k = 0; k < 2; ++k) {
        EXPECT_EQ(routing.experts(t, k), choice.experts[static_cast<std::size_t>(k)]);
        // Some tens of roundings of logits of the size of sqrt(6), and scales up to 2.5.
        EXPECT_NEAR(routing.weights(t, k), choice.weights[static_cast<std::size_t>(k)], 1e-13);
      }
    }
    const double tolerance = test_support::roundings(d_model, d_ff * 2) *
                             std::numeric_limits<double>::epsilon() *
                             reference::bound_of_mixture(x, routing, experts, shared);
    EXPECT_LE((y - reference::mixture(x, routing, experts, reference::silu, shared))
                  .cwiseAbs()
                  .maxCoeff(),
              tolerance)
        << family.config["model_type"];
  }
}

TEST(Checkpoint, NamesEveryTensorThatIsMissing) {
  for (const Family& family : families()) {
    const SafetensorsWriter whole = checkpoint_of(family);
    for (const auto& [name, entry] : whole.header().items()) {
      SafetensorsWriter renamed = whole;
      renamed.header()["elsewhere"] = entry;
      renamed.header().erase(name);
      const TemporaryFolder folder;
      const Checkpoint checkpoint = written(folder, family, renamed);
      try {
        (void)checkpoint.layer<float>(1);
        ADD_FAILURE() << name << " is not needed";
      } catch (const moe::FormatError& error) {
        EXPECT_EQ(error.tensor(), name);
        EXPECT_NE(std::string(error.what()).find("is missing"), std::string::npos);
      }
    }
  }
}

constexpr const char* one_weight = "model.layers.1.block_sparse_moe.experts.2.w2.weight";

/// What a Mixtral layer says of a change to the header of `one_weight`, which it must name.
template <class Change>
std::string complaint_about_one_weight(const Change& change) {
  const Family family = families()[0];
  SafetensorsWriter writer = checkpoint_of(family);
  change(writer.header()[one_weight]);
  const TemporaryFolder folder;
  try {
    (void)written(folder, family, writer).layer<float>(1);
  } catch (const moe::FormatError& error) {
    EXPECT_EQ(error.tensor(), one_weight);
    return error.what();
  }
  return "";
}

TEST(Checkpoint, NamesATensorOfAnotherShape) {
  const std::string message = complaint_about_one_weight([](auto& entry) {
    entry["shape"] = {d_ff, d_model};
  });
  EXPECT_NE(message.find("expected shape [6, 10], found [10, 6]"), std::string::npos) << message;
}

TEST(Checkpoint, WithIntegersForWeightsIsRefused) {
  const std::string message =
      complaint_about_one_weight([](auto& entry) { entry["dtype"] = "I32"; });
  EXPECT_NE(message.find("dtype I32 does not fit"), std::string::npos) << message;
}

TEST(Checkpoint, OfAnotherFamilyIsRefused) {
  const std::vector<Family> all = families();
  const TemporaryFolder folder;
  // Mixtral's tensors with Qwen3's configuration.
  const Checkpoint checkpoint = written(folder, all[1], checkpoint_of(all[0]));
  EXPECT_THROW((void)checkpoint.layer<float>(1), moe::FormatError);
  // A layer that is not there.
  const Checkpoint right = written(folder, all[0], checkpoint_of(all[0]));
  EXPECT_NO_THROW((void)right.layer<float>(1));
  EXPECT_THROW((void)right.layer<float>(0), moe::FormatError);
  EXPECT_THROW((void)right.layer<float>(-1), moe::FormatError);
}

std::string complaint(const nlohmann::json& config) {
  try {
    (void)moe::io::layer_config(config, "config.json");
  } catch (const moe::FormatError& error) {
    EXPECT_EQ(error.file(), "config.json");
    return error.what();
  }
  return "";
}

TEST(LayerConfig, RefusesMissingAndAbsurdFields) {
  for (const Family& family : families()) {
    EXPECT_EQ(complaint(family.config), "");
    for (const char* key : {"model_type", "hidden_size", "num_experts_per_tok"}) {
      nlohmann::json config = family.config;
      config.erase(key);
      EXPECT_NE(complaint(config).find(key), std::string::npos);
      for (const nlohmann::json& absurd :
           {nlohmann::json(-1), nlohmann::json(0), nlohmann::json(1e30), nlohmann::json(2.5),
            nlohmann::json::array(), nlohmann::json(std::uint64_t{1} << 63)}) {
        config[key] = absurd;
        EXPECT_NE(complaint(config).find(key), std::string::npos) << absurd;
      }
    }
  }
  nlohmann::json config = families()[4].config;
  config["n_shared_experts"] = -1;
  EXPECT_NE(complaint(config).find("n_shared_experts"), std::string::npos);
  config = families()[0].config;
  config["model_type"] = "llama";
  EXPECT_NE(complaint(config).find("'llama' is not supported"), std::string::npos);
  config = families()[0].config;
  config["hidden_act"] = "mish";
  EXPECT_NE(complaint(config).find("hidden_act 'mish' is not supported"), std::string::npos);
  EXPECT_NE(complaint(nlohmann::json::array()).find("no JSON object"), std::string::npos);
}

TEST(LayerConfig, TakesAbsentFieldsAsTransformersDoes) {
  nlohmann::json config = families()[4].config;
  for (const char* key : {"n_shared_experts", "n_group", "topk_group", "routed_scaling_factor"})
    config.erase(key);
  moe::io::LayerConfig layer = moe::io::layer_config(config, "");
  EXPECT_EQ(layer.shared_d_ff, layer.d_ff);
  EXPECT_EQ(layer.rule.groups.count, 8);
  EXPECT_EQ(layer.rule.groups.kept, 4);
  EXPECT_EQ(layer.rule.scale, 2.5);
  config["model_type"] = "glm4_moe";
  layer = moe::io::layer_config(config, "");
  EXPECT_EQ(layer.shared_d_ff, layer.d_ff);
  EXPECT_EQ(layer.rule.groups.count, 1);
  EXPECT_EQ(layer.rule.scale, 1);
}

TEST(LayerConfig, RefusesAnotherScoringOrDeepNesting) {
  nlohmann::json config = families()[4].config;
  config["scoring_func"] = "softmax";
  EXPECT_NE(complaint(config).find("'scoring_func' is 'softmax'"), std::string::npos);
  config["scoring_func"] = "sigmoid";
  EXPECT_EQ(complaint(config), "");
  config["topk_method"] = "greedy";
  EXPECT_NE(complaint(config).find("'topk_method' is 'greedy'"), std::string::npos);
  config = families()[0].config;
  nlohmann::json deep = 1;
  for (int i = 0; i < 100'000; ++i) {
    nlohmann::json outer = nlohmann::json::array();
    outer.push_back(std::move(deep));
    deep = std::move(outer);
  }
  config["hidden_size"] = std::move(deep);
  try {
    (void)moe::io::layer_config(config, "config.json");
    FAIL() << "nothing was thrown";
  } catch (const moe::FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("'hidden_size' is array"), std::string::npos);
  }
}

TEST(Checkpoint, ThatAsksForMoreThanTheFileHoldsIsRefusedBeforeMemoryIsTaken) {
  Family family = families()[4];
  family.config["moe_intermediate_size"] = Index{1} << 31;
  const TemporaryFolder folder;
  EXPECT_THROW((void)written(folder, family, checkpoint_of(family)).layer<double>(1),
               moe::FormatError);
}

TEST(LayerConfig, FollowsTheSwitchesOfTheFamily) {
  nlohmann::json config = families()[1].config;
  config["norm_topk_prob"] = false;
  EXPECT_EQ(moe::io::layer_config(config, "").rule.renormalization.kind,
            moe::Renormalization::none);
  config = families()[4].config;
  config["norm_topk_prob"] = false;
  config["routed_scaling_factor"] = 1.5;
  config["n_shared_experts"] = 0;
  const moe::io::LayerConfig layer = moe::io::layer_config(config, "");
  EXPECT_EQ(layer.rule.renormalization.kind, moe::Renormalization::none);
  EXPECT_EQ(layer.rule.scale, 1.5);
  EXPECT_EQ(layer.shared_d_ff, 0);
}

TEST(Checkpoint, TakesItsConfigurationFromBesideOrFromTheMetadata) {
  const Family family = families()[0];
  SafetensorsWriter writer = checkpoint_of(family);
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", writer.bytes());
  // Without one, the names tell the family.
  EXPECT_EQ(Checkpoint::open(path).layer_config().family, moe::io::Family::mixtral);
  EXPECT_NO_THROW((void)Checkpoint::open(path).layer<float>(1));

  writer.metadata("config", family.config.dump());
  folder.write("model.safetensors", writer.bytes());
  EXPECT_EQ(Checkpoint::open(path).config_source(), path);
  EXPECT_NO_THROW((void)Checkpoint::open(path).layer<float>(1));

  nlohmann::json beside = family.config;
  beside["num_experts_per_tok"] = 3;
  folder.write("config.json", beside.dump());
  EXPECT_EQ(Checkpoint::open(path).config_source(), folder.file("config.json"));
  EXPECT_EQ(Checkpoint::open(path).layer_config().top_k, 3);
  EXPECT_EQ(Checkpoint::open(folder.path()).layer_config().top_k, 3);

  folder.write("config.json", "{");
  EXPECT_THROW((void)Checkpoint::open(path), moe::FormatError);
  folder.write("config.json", "");
  EXPECT_THROW((void)Checkpoint::open(path), moe::FormatError);
}

TEST(Checkpoint, WithMoreChoicesThanExpertsIsRefused) {
  Family family = families()[0];
  family.config["num_experts_per_tok"] = 5;
  const TemporaryFolder folder;
  EXPECT_THROW((void)written(folder, family, checkpoint_of(family)).layer<float>(1),
               std::invalid_argument);
}

}  // namespace checkpoint_test
