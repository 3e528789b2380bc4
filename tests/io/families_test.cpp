// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/quantized_loader.hpp>

#include "support/layers.hpp"
#include "support/safetensors_writer.hpp"

namespace families_test {

using moe::Index;
using moe::Matrix;
using moe::io::Checkpoint;
using moe::io::CheckpointActivation;
using moe::io::Family;
using moe::io::LayerConfig;
using test_support::random_matrix;
using test_support::SafetensorsWriter;
using test_support::TemporaryFolder;

/// A reference case, which has its family's own tensor names, and the config.json that its family
/// would have.
struct Published {
  const char* file;
  Family family;
  Index layer;
  nlohmann::json config;
};

nlohmann::json sizes(const char* model_type, Index d_model, Index top_k) {
  return {{"model_type", model_type}, {"hidden_size", d_model}, {"num_experts_per_tok", top_k}};
}

nlohmann::json with(nlohmann::json config, const nlohmann::json& fields) {
  if (!fields.is_null()) config.update(fields);
  return config;
}

std::vector<Published> published() {
  const nlohmann::json glm = with(sizes("glm4_moe", 32, 2), {{"moe_intermediate_size", 48},
                                                             {"n_routed_experts", 6},
                                                             {"n_shared_experts", 1},
                                                             {"n_group", 1},
                                                             {"topk_group", 1},
                                                             {"norm_topk_prob", true},
                                                             {"routed_scaling_factor", 1.0}});
  return {
      {"mixtral_odd_t1", Family::mixtral, 0,
       with(sizes("mixtral", 37, 2), {{"intermediate_size", 51}, {"num_local_experts", 4}})},
      {"qwen2_moe_shared_grad", Family::qwen2_moe, 0,
       with(sizes("qwen2_moe", 32, 2), {{"moe_intermediate_size", 48},
                                        {"num_experts", 4},
                                        {"shared_expert_intermediate_size", 56}})},
      {"qwen3_moe_basic", Family::qwen3_moe, 0,
       with(sizes("qwen3_moe", 41, 2),
            {{"moe_intermediate_size", 49}, {"num_experts", 6}, {"norm_topk_prob", true}})},
      {"olmoe_e12k8", Family::olmoe, 0,
       with(sizes("olmoe", 32, 8), {{"intermediate_size", 48}, {"num_experts", 12}})},
      {"dbrx_l2",
       Family::dbrx,
       0,
       {{"model_type", "dbrx"},
        {"d_model", 39},
        {"ffn_config",
         {{"ffn_hidden_size", 51},
          {"moe_num_experts", 6},
          {"moe_top_k", 3},
          {"moe_normalize_expert_weights", 2},
          {"ffn_act_fn", {{"name", "silu"}}}}}}},
      {"deepseek_v2_greedy", Family::deepseek_v2, 0,
       with(sizes("deepseek_v2", 32, 3), {{"moe_intermediate_size", 48},
                                          {"n_routed_experts", 8},
                                          {"n_shared_experts", 1},
                                          {"topk_method", "greedy"},
                                          {"norm_topk_prob", false},
                                          {"routed_scaling_factor", 1.0}})},
      {"deepseek_v2_group_grad", Family::deepseek_v2, 0,
       with(sizes("deepseek_v2", 32, 2), {{"moe_intermediate_size", 48},
                                          {"n_routed_experts", 6},
                                          {"n_shared_experts", 1},
                                          {"topk_method", "group_limited_greedy"},
                                          {"n_group", 3},
                                          {"topk_group", 2},
                                          {"norm_topk_prob", false},
                                          {"routed_scaling_factor", 16.0}})},
      {"deepseek_v3_official_sigmoid", Family::deepseek_v3, 0,
       with(glm, {{"model_type", "deepseek_v3"},
                  {"n_group", 3},
                  {"topk_group", 2},
                  {"routed_scaling_factor", 2.5}})},
      {"glm45_basic", Family::glm4_moe, 0, glm},
      {"phimoe_basic", Family::phimoe, 0,
       with(sizes("phimoe", 32, 2), {{"intermediate_size", 48}, {"num_local_experts", 8}})},
      {"llama4_top1_grad",
       Family::llama4,
       0,
       {{"model_type", "llama4"},
        {"text_config",
         {{"hidden_size", 32},
          {"num_experts_per_tok", 1},
          {"intermediate_size", 48},
          {"num_local_experts", 4}}}}},
      {"gpt_oss_clamped", Family::gpt_oss, 0,
       with(sizes("gpt_oss", 32, 3),
            {{"intermediate_size", 52}, {"num_local_experts", 6}, {"swiglu_limit", 7.0}})},
      {"jetmoe_grad", Family::jetmoe, 0,
       with(
           sizes("jetmoe", 32, 2),
           {{"intermediate_size", 48}, {"num_local_experts", 4}, {"activation_function", "silu"}})},
      {"granitemoe_basic", Family::granitemoe, 0,
       with(sizes("granitemoe", 35, 3), {{"intermediate_size", 53}, {"num_local_experts", 6}})},
      {"granitemoe_shared_grad", Family::granitemoe, 0,
       with(sizes("granitemoeshared", 32, 2), {{"intermediate_size", 48},
                                               {"num_local_experts", 4},
                                               {"shared_intermediate_size", 64}})},
      {"ernie45_shared_grad",
       Family::ernie4_5_moe,
       0,
       {{"model_type", "ernie4_5_moe"},
        {"hidden_size", 32},
        {"moe_intermediate_size", 48},
        {"moe_num_experts", 4},
        {"moe_k", 2},
        {"moe_num_shared_experts", 1}}},
      {"switch_drop_grad",
       Family::switch_transformers,
       1,
       {{"model_type", "switch_transformers"},
        {"d_model", 32},
        {"d_ff", 64},
        {"num_experts", 4},
        {"expert_capacity", 3}}},
      {"nllb_moe_drop_grad",
       Family::nllb_moe,
       3,
       {{"model_type", "nllb-moe"},
        {"d_model", 32},
        {"encoder_ffn_dim", 56},
        {"num_experts", 4},
        {"expert_capacity", 5},
        {"moe_token_dropout", 0.0},
        {"moe_eval_capacity_token_fraction", 0.0}}},
  };
}

std::string path_of(const Published& model) {
  return std::string(MOE_TEST_DATA "/golden/") + model.file + ".safetensors";
}

TEST(PublishedCheckpoints, OfEveryFamilyGiveTheReferencesOutput) {
  const std::vector<Published> all = published();
  for (const Published& model : all) {
    SCOPED_TRACE(model.file);
    const TemporaryFolder folder;
    std::filesystem::copy(path_of(model), folder.file("model.safetensors"));
    folder.write("config.json", model.config.dump());
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    EXPECT_EQ(checkpoint.layer_config().family, model.family);
    auto layer = checkpoint.layer<double>(model.layer);
    const auto& shape = checkpoint.tensors().tensor("input").shape;
    const auto x = checkpoint.tensors().matrix<double>("input", shape[0], shape[1]);
    const auto expected =
        checkpoint.tensors().matrix<double>("expected.output", shape[0], shape[1]);
    Matrix<double> y(x.rows(), x.cols());
    layer.forward(x, y);
    const double largest = expected.cwiseAbs().maxCoeff();
    EXPECT_LE((y - expected).cwiseAbs().maxCoeff(), 1e-12 * largest);
  }
}

/// Whether a tensor of a block has weights or biases of routed experts.
bool is_of_routed_experts(const std::string& name) {
  if (name.find("shared") != std::string::npos) return false;
  return name.find("experts.") != std::string::npos || name.ends_with("put_linear.weight");
}

TEST(PublishedCheckpoints, ExpertsThatAreNoNumbersAreNamedByTensorAndOffset) {
  const auto format = moe::format_of("int8-g32");
  for (const Published& model : published()) {
    SCOPED_TRACE(model.file);
    const TemporaryFolder folder;
    const std::string file = folder.file("model.safetensors");
    folder.write("config.json", model.config.dump());
    std::filesystem::copy(path_of(model), file);
    const Checkpoint whole = Checkpoint::open(folder.path());
    Index tensors = 0;
    for (const std::string& name : whole.tensors().names_below(whole.block_prefix(model.layer))) {
      if (!is_of_routed_experts(name)) continue;
      ++tensors;
      const moe::io::TensorView& tensor = whole.tensors().tensor(name);
      // The last value, of the last expert where all are in one tensor.
      const std::size_t bytes = tensor.data.size() / static_cast<std::size_t>(tensor.size());
      const std::uint64_t offset = tensor.offset + tensor.data.size() - bytes;
      std::filesystem::remove(file);  // What is mapped stays.
      std::filesystem::copy(path_of(model), file);
      std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
      out.seekp(static_cast<std::streamoff>(offset));
      out << std::string(bytes, '\xff');
      out.close();
      const Checkpoint checkpoint = Checkpoint::open(folder.path());
      try {
        moe::io::quantized_layer(
            checkpoint, model.layer,
            {.format = moe::ExpertFormat{format, format}, .search = moe::ScaleSearch::nearest});
        ADD_FAILURE() << name << " is taken";
      } catch (const moe::FormatError& error) {
        EXPECT_EQ(error.tensor(), name);
        EXPECT_EQ(error.offset(), offset);
        EXPECT_EQ(error.file(), file);
      }
    }
    EXPECT_GE(tensors, 2);
  }
}

TEST(PublishedCheckpoints, WithoutAConfigurationAreToldByTheirNames) {
  for (const Published& model : published()) {
    SCOPED_TRACE(model.file);
    const Checkpoint checkpoint = Checkpoint::open(path_of(model));
    const LayerConfig found = checkpoint.layer_config();
    const LayerConfig expected = moe::io::layer_config(model.config, "");
    // These need the attention beside the block to be told apart.
    const bool is_twin = model.family == Family::phimoe || model.family == Family::olmoe ||
                         model.family == Family::glm4_moe;
    EXPECT_EQ(found.family == model.family, !is_twin);
    EXPECT_EQ(found.d_model, expected.d_model);
    EXPECT_EQ(found.d_ff, expected.d_ff);
    EXPECT_EQ(found.num_experts, expected.num_experts);
    EXPECT_EQ(found.shared_d_ff, expected.shared_d_ff);
  }
}

/// One expert of a family with "experts.0.<up>", and what stands beside it.
std::optional<Family> family_of(const std::string& block, const std::string& gate,
                                const std::vector<std::string>& others) {
  SafetensorsWriter writer;
  writer.add("model.layers.2." + block + "gate.weight", random_matrix<float>(2, 4, 1));
  writer.add("model.layers.2." + block + "experts.0." + gate + ".weight",
             random_matrix<float>(3, 4, 1));
  for (const std::string& other : others) {
    const Index rows = other.ends_with("q_norm.weight:2") ? 2 : 8;
    writer.add_vector("model.layers.2." + other.substr(0, other.find(':')),
                      random_matrix<float>(rows, 1, 1));
  }
  const TemporaryFolder folder;
  const auto tensors = moe::io::Tensors::open(folder.write("m.safetensors", writer.bytes()));
  const auto found = moe::io::find_block(tensors);
  return found ? std::optional(found->family) : std::nullopt;
}

TEST(FindBlock, TellsTwinsApartByWhatStandsBesideTheBlock) {
  EXPECT_EQ(family_of("block_sparse_moe.", "w1", {"input_layernorm.weight"}), Family::mixtral);
  EXPECT_EQ(family_of("block_sparse_moe.", "w1", {"input_layernorm.bias"}), Family::phimoe);
  const std::string query = "self_attn.q_proj.weight";
  EXPECT_EQ(family_of("mlp.", "gate_proj", {query, "self_attn.q_norm.weight:2"}),
            Family::qwen3_moe);
  EXPECT_EQ(family_of("mlp.", "gate_proj", {query, "self_attn.q_norm.weight"}), Family::olmoe);
  const std::string bias = "mlp.gate.e_score_correction_bias";
  EXPECT_EQ(family_of("mlp.", "gate_proj", {bias, query}), Family::glm4_moe);
  EXPECT_EQ(family_of("mlp.", "gate_proj", {bias, "self_attn.kv_b_proj.weight"}),
            Family::deepseek_v3);
  EXPECT_EQ(family_of("mlp.", "gate_proj", {"mlp.shared_expert_gate.weight"}), Family::qwen2_moe);
  EXPECT_EQ(family_of("mlp.", "gate_proj", {"mlp.moe_statics.e_score_correction_bias"}),
            Family::ernie4_5_moe);
  EXPECT_EQ(family_of("mlp.", "gate_proj", {"mlp.shared_experts.up_proj.weight"}),
            Family::deepseek_v2);
  EXPECT_EQ(family_of("other.", "gate_proj", {}), std::nullopt);
}

TEST(LayerConfig, HasTheSwitchesOfEveryFamily) {
  const std::vector<Published> all = published();
  const auto config = [&](const char* file, const nlohmann::json& fields) {
    for (const Published& model : all)
      if (std::string(model.file) == file)
        return moe::io::layer_config(with(model.config, fields), "");
    throw std::runtime_error("no such case");
  };
  EXPECT_EQ(config("jetmoe_grad", {{"activation_function", "gelu"}}).activation,
            CheckpointActivation::gelu);
  EXPECT_EQ(config("qwen2_moe_shared_grad", {{"norm_topk_prob", true}}).rule.renormalization.kind,
            moe::Renormalization::sum);
  EXPECT_EQ(config("qwen2_moe_shared_grad", {}).shared_d_ff, 56);
  EXPECT_EQ(config("phimoe_basic", {{"router_jitter_noise", .25}}).sparse_mixer_jitter, .25);
  EXPECT_EQ(config("phimoe_basic", {{"input_jitter_noise", .125}}).input_jitter, .125);
  EXPECT_EQ(config("gpt_oss_clamped", {{"swiglu_limit", 3.0}}).clamp.limit, 3);
  EXPECT_EQ(config("ernie45_shared_grad", {{"moe_norm_min", 1e-9}}).rule.renormalization.epsilon,
            1e-9);
  const LayerConfig v2 = config("deepseek_v2_group_grad", {{"norm_topk_prob", true}});
  EXPECT_FALSE(v2.rule.scales_renormalized) << "as DeepSeek's own code has it";
  EXPECT_EQ(v2.rule.groups.score, moe::GroupScore::maximum);
  const LayerConfig dense = config("switch_drop_grad", {{"router_bias", true}});
  EXPECT_TRUE(dense.router_bias);
  EXPECT_EQ(dense.activation, CheckpointActivation::relu);
  EXPECT_EQ(dense.capacity.fixed_rows, 3);
  const LayerConfig nllb =
      config("nllb_moe_drop_grad", {{"moe_eval_capacity_token_fraction", .5},
                                    {"batch_prioritized_routing", true},
                                    {"normalize_router_prob_before_dropping", true},
                                    {"moe_token_dropout", .25}});
  EXPECT_EQ(nllb.capacity.rows(9, 2, 4), 5);
  EXPECT_EQ(nllb.capacity.order, moe::DropOrder::batch_priority);
  EXPECT_FALSE(nllb.rule.renormalization.after_drop);
  EXPECT_EQ(nllb.rule.scale, .75);
  EXPECT_THROW(config("phimoe_basic", {{"num_experts_per_tok", 3}}), moe::FormatError);
  EXPECT_THROW(config("deepseek_v2_greedy", {{"topk_method", "noaux_tc"}}), moe::FormatError);
  EXPECT_THROW(config("deepseek_v2_greedy", {{"scoring_func", "sigmoid"}}), moe::FormatError);
  EXPECT_THROW(config("switch_drop_grad", {{"is_gated_act", true}}), moe::FormatError);
  const nlohmann::json no_share{{"moe_eval_capacity_token_fraction", 0.0},
                                {"expert_capacity", nullptr}};
  EXPECT_EQ(config("nllb_moe_drop_grad", no_share).capacity.rows(9, 2, 4), 6) << "2 ceil(9 / 4)";
  EXPECT_THROW(config("nllb_moe_drop_grad", {{"decoder_ffn_dim", 57}}), moe::FormatError);
  EXPECT_THROW(config("nllb_moe_drop_grad", {{"second_expert_policy", "sampling"}}),
               moe::FormatError);
}

TEST(LayerConfig, RefusesValuesThatMeanNothing) {
  const std::vector<Published> all = published();
  const auto refuses = [&](const char* file, const nlohmann::json& fields, const char* named) {
    for (const Published& model : all) {
      if (std::string(model.file) != file) continue;
      nlohmann::json config = model.config;
      nlohmann::json& inner = config.contains("ffn_config") ? config["ffn_config"] : config;
      inner.update(fields);
      try {
        moe::io::layer_config(config, "");
      } catch (const moe::FormatError& error) {
        EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
        return;
      }
      ADD_FAILURE() << file << " takes " << fields;
    }
  };
  refuses("nllb_moe_drop_grad", {{"expert_capacity", -3}}, "expert_capacity");
  refuses("nllb_moe_drop_grad", {{"moe_token_dropout", 7.0}}, "moe_token_dropout");
  refuses("switch_drop_grad", {{"expert_capacity", -3}}, "expert_capacity");
  refuses("switch_drop_grad", {{"router_jitter_noise", 1.5}}, "router_jitter_noise");
  refuses("granitemoe_basic", {{"shared_intermediate_size", -5}}, "shared_intermediate_size");
  refuses("phimoe_basic", {{"router_jitter_noise", -1.0}}, "router_jitter_noise");
  refuses("mixtral_odd_t1", {{"router_jitter_noise", -1.0}}, "router_jitter_noise");
  refuses("dbrx_l2", {{"moe_normalize_expert_weights", -1.0}}, "moe_normalize_expert_weights");
  refuses("dbrx_l2", {{"uniform_expert_assignment", true}}, "uniform_expert_assignment");
  refuses("ernie45_shared_grad", {{"use_bias", true}}, "use_bias");
}

TEST(LayerConfig, NoSharedExpertsMayBeNull) {
  for (const Published& model : published()) {
    if (model.family != Family::glm4_moe) continue;
    nlohmann::json config = model.config;
    config["n_shared_experts"] = nullptr;
    EXPECT_EQ(moe::io::layer_config(config, "").shared_d_ff, 0);
  }
}

TEST(PublishedCheckpoints, WithATensorThatIsNoneOfTheBlocksAreRefused) {
  SafetensorsWriter writer;
  const std::string block = "model.layers.0.block_sparse_moe.";
  writer.add(block + "gate.weight", random_matrix<float>(2, 4, 1));
  for (const char* const expert : {"experts.0.", "experts.1."}) {
    writer.add(block + expert + "w1.weight", random_matrix<float>(3, 4, 2));
    writer.add(block + expert + "w2.weight", random_matrix<float>(4, 3, 3));
    writer.add(block + expert + "w3.weight", random_matrix<float>(3, 4, 4));
  }
  const TemporaryFolder folder;
  const auto open = [&] {
    return Checkpoint::open(folder.write("m.safetensors", writer.bytes())).layer<float>(0);
  };
  EXPECT_NO_THROW(open());
  writer.add("model.layers.0.input_layernorm.weight", random_matrix<float>(4, 1, 5));
  EXPECT_NO_THROW(open());
  writer.add_vector(block + "experts.0.w1.bias", random_matrix<float>(3, 1, 5));
  try {
    open();
    ADD_FAILURE() << "a bias that nobody reads";
  } catch (const moe::FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(block + "experts.0.w1.bias"), std::string::npos);
  }
}

TEST(LayerConfig, ANormOfNullIsNone) {
  nlohmann::json json;
  for (const Published& model : published())
    if (model.family == Family::dbrx) json = model.config;
  nlohmann::json& ffn = json["ffn_config"];
  EXPECT_EQ(moe::io::layer_config(json, "").rule.renormalization.p, 2);
  ffn["moe_jitter_eps"] = .25;
  ffn["moe_normalize_expert_weights"] = nullptr;
  const moe::RoutingRule rule = moe::io::layer_config(json, "").rule;
  EXPECT_EQ(rule.renormalization.kind, moe::Renormalization::none);
  EXPECT_EQ(rule.jitter.epsilon, .25);
  ffn.erase("moe_normalize_expert_weights");
  EXPECT_EQ(moe::io::layer_config(json, "").rule.renormalization.p, 1);
}

TEST(BlockPrefix, OfTheTwoHalvesOfAModel) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("decoder.block.3.layer.2.mlp.router.classifier.weight", random_matrix<float>(2, 4, 1));
  const auto tensors = moe::io::Tensors::open(folder.write("m.safetensors", writer.bytes()));
  using moe::io::Stack;
  const auto prefix = [&](Family family, Stack stack) {
    return moe::io::detail::block_prefix(family, 3, stack, tensors);
  };
  EXPECT_EQ(prefix(Family::switch_transformers, Stack::encoder), "encoder.block.3.layer.1.mlp.");
  EXPECT_EQ(prefix(Family::switch_transformers, Stack::decoder), "decoder.block.3.layer.2.mlp.");
  EXPECT_EQ(prefix(Family::nllb_moe, Stack::decoder), "model.decoder.layers.3.ffn.");
  EXPECT_EQ(prefix(Family::llama4, Stack::encoder), "model.layers.3.feed_forward.");
}

}  // namespace families_test
