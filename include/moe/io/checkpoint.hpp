// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// MoE layers from published checkpoints, by their families' own tensor names. (optional: needs
// nlohmann_json)
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/feed_forward.hpp"
#include "moe/fwd.hpp"
#include "moe/io/config_reader.hpp"
#include "moe/io/json.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensors.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/sparse_moe.hpp"
#include "moe/routing/presets.hpp"
#include "moe/routing/topk_router.hpp"

namespace moe::inline MOE_ABI::io {

/// Model families whose layers can be loaded.
enum class Family { mixtral, qwen3_moe, olmoe, glm4_moe, deepseek_v3 };

/// Sizes, rule and tensor names of a model's MoE layers. Filled by `layer_config`; a caller may
/// change the rule (another variant of the family) before loading.
struct LayerConfig {
  Family family = Family::mixtral;
  Index d_model = 0;
  Index d_ff = 0;
  Index num_experts = 0;
  Index top_k = 0;
  Index num_shared = 0;  ///< shared experts, stored as one of num_shared times the width
  RoutingRule rule;
};

/// What every supported family loads as.
template <class Scalar>
using CheckpointLayer = SparseMoe<TopKRouter<Scalar>, SwiGluExperts<Scalar>>;

namespace detail {

struct FamilyNames {
  Family family;
  std::string_view model_type;
  std::string_view block;  // between "model.layers.N." and the names below
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  bool has_selection_bias;
};

inline constexpr std::array<FamilyNames, 5> families{{
    {Family::mixtral, "mixtral", "block_sparse_moe.", "w1", "w3", "w2", false},
    {Family::qwen3_moe, "qwen3_moe", "mlp.", "gate_proj", "up_proj", "down_proj", false},
    {Family::olmoe, "olmoe", "mlp.", "gate_proj", "up_proj", "down_proj", false},
    {Family::glm4_moe, "glm4_moe", "mlp.", "gate_proj", "up_proj", "down_proj", true},
    {Family::deepseek_v3, "deepseek_v3", "mlp.", "gate_proj", "up_proj", "down_proj", true},
}};

inline const FamilyNames& names_of(Family family) noexcept {
  return families[static_cast<std::size_t>(family)];
}

}  // namespace detail

/// Reads a model's config.json. `source` is named in errors.
///
/// Throws  FormatError if the model type is of no supported family, or a field is missing, absurd
///         or asks for what is not supported.
inline LayerConfig layer_config(const nlohmann::json& json, const std::string& source) {
  const ConfigReader config(json, source);
  const auto model_type = config.get<std::string>("model_type");
  const detail::FamilyNames* names = nullptr;
  for (const detail::FamilyNames& known : detail::families)
    if (known.model_type == model_type) names = &known;
  if (names == nullptr)
    config.fail(moe::detail::text_of("model_type '", model_type, "' is not supported"));
  const auto activation = config.get<std::string>("hidden_act", "silu");
  if (activation != "silu")
    config.fail(moe::detail::text_of("hidden_act '", activation, "' is not supported"));

  LayerConfig layer;
  layer.family = names->family;
  layer.d_model = config.positive("hidden_size");
  layer.top_k = config.positive("num_experts_per_tok");
  switch (layer.family) {
    case Family::mixtral:
      layer.d_ff = config.positive("intermediate_size");
      layer.num_experts = config.positive("num_local_experts");
      layer.rule = presets::mixtral();
      break;
    case Family::qwen3_moe:
      layer.d_ff = config.positive("moe_intermediate_size");
      layer.num_experts = config.positive("num_experts");
      // transformers' default for an absent field is false, unlike the published checkpoints.
      layer.rule = presets::qwen3_moe(config.get<bool>("norm_topk_prob", false));
      break;
    case Family::olmoe:
      layer.d_ff = config.positive("intermediate_size");
      layer.num_experts = config.positive("num_experts");
      layer.rule = presets::olmoe(config.get<bool>("norm_topk_prob", false));
      break;
    case Family::glm4_moe:
    case Family::deepseek_v3: {
      layer.d_ff = config.positive("moe_intermediate_size");
      layer.num_experts = config.positive("n_routed_experts");
      // Absent fields have transformers' defaults, which differ between the two.
      const bool is_deepseek = layer.family == Family::deepseek_v3;
      layer.num_shared = config.get<Index>("n_shared_experts", 1);
      const presets::BiasedSigmoid options{
          .groups = config.get<Index>("n_group", is_deepseek ? 8 : 1),
          .groups_kept = config.get<Index>("topk_group", is_deepseek ? 4 : 1),
          .norm_topk_prob = config.get<bool>("norm_topk_prob", true),
          .scale = config.get<double>("routed_scaling_factor", is_deepseek ? 2.5 : 1.0)};
      layer.rule = is_deepseek ? presets::deepseek_v3(options) : presets::glm4_moe(options);
      for (const auto& [key, only] :
           {std::pair{"scoring_func", "sigmoid"}, std::pair{"topk_method", "noaux_tc"}})
        if (const auto value = config.get<std::string>(key, only); value != only)
          config.fail(moe::detail::text_of("'", key, "' is '", value, "', which is not supported"));
      if (config.has("n_shared_experts"))
        config.check(layer.num_shared >= 0 && layer.num_shared <= 1024, "n_shared_experts");
      break;
    }
  }
  return layer;
}

/// Loads the MoE block whose tensor names begin with `prefix`, widened to Scalar expert by expert.
///
/// Throws  FormatError naming the tensor that is missing or has another shape;
///         std::invalid_argument if the rule cannot work for the sizes.
template <class Scalar>
CheckpointLayer<Scalar> load_block(const Tensors& tensors, const LayerConfig& config,
                                   const std::string& prefix) {
  const detail::FamilyNames& names = detail::names_of(config.family);
  const auto prefix_of = [&](Index expert) {
    return moe::detail::text_of(prefix, "experts.", expert, ".");
  };
  const auto require = [&](const std::string& of, Index d_ff) {
    const auto weight = [&](std::string_view role, Index rows, Index cols) {
      tensors.require(moe::detail::text_of(of, role, ".weight"), rows, cols);
    };
    weight(names.gate, d_ff, config.d_model);
    weight(names.up, d_ff, config.d_model);
    weight(names.down, config.d_model, d_ff);
  };
  // Before any memory is taken: a configuration may ask for more than there is.
  for (Index e = 0; e < config.num_experts; ++e) require(prefix_of(e), config.d_ff);
  if (config.num_shared > 0)
    require(prefix + "shared_experts.",
            moe::detail::product("load_block", config.d_ff, config.num_shared));

  RouterWeights<Scalar> router;
  router.weight =
      tensors.matrix<Scalar>(prefix + "gate.weight", config.num_experts, config.d_model);
  if (names.has_selection_bias)
    router.selection_bias =
        tensors.vector<Scalar>(prefix + "gate.e_score_correction_bias", config.num_experts);

  const auto load = [&](SwiGluExperts<Scalar>& bank, Index expert, const std::string& of) {
    const auto weight = [&](std::string_view role, Index rows, Index cols) {
      return tensors.matrix<Scalar>(moe::detail::text_of(of, role, ".weight"), rows, cols);
    };
    const Matrix<Scalar> gate = weight(names.gate, bank.d_ff(), bank.d_model());
    const Matrix<Scalar> up = weight(names.up, bank.d_ff(), bank.d_model());
    const Matrix<Scalar> down = weight(names.down, bank.d_model(), bank.d_ff());
    bank.set_expert(expert, {.gate = gate, .up = up, .down = down});
  };
  SwiGluExperts<Scalar> experts(
      {.num_experts = config.num_experts, .d_model = config.d_model, .d_ff = config.d_ff});
  for (Index e = 0; e < config.num_experts; ++e) load(experts, e, prefix_of(e));

  SharedExperts<SwiGluExperts<Scalar>> shared;
  if (config.num_shared > 0) {
    SwiGluExperts<Scalar> bank(
        {.num_experts = 1, .d_model = config.d_model, .d_ff = config.d_ff * config.num_shared});
    load(bank, 0, prefix + "shared_experts.");
    shared = SharedExperts(std::move(bank));
  }
  return CheckpointLayer<Scalar>(TopKRouter<Scalar>({.d_model = config.d_model,
                                                     .num_experts = config.num_experts,
                                                     .top_k = config.top_k,
                                                     .rule = config.rule},
                                                    std::move(router)),
                                 std::move(experts), std::move(shared));
}

/// A checkpoint on disk: its tensors and its configuration.
class Checkpoint {
 public:
  /// Opens what `Tensors::open` opens. The configuration is `config.json` beside the file (in the
  /// folder), else the file's metadata entry `config`.
  ///
  /// Throws  as Tensors::open; FormatError if there is no configuration or it is no JSON object.
  static Checkpoint open(const std::string& path) {
    Tensors tensors = Tensors::open(path);
    const std::filesystem::path beside =
        std::filesystem::path(tensors.path()).parent_path() / "config.json";
    std::string source = beside.string();
    std::string text;
    if (std::filesystem::exists(beside)) {
      const MappedFile file(source);
      text.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    } else {
      source = tensors.path();
      const auto entry = tensors.metadata().find("config");
      if (entry == tensors.metadata().end())
        throw FormatError(source, "", 0,
                          "there is neither a config.json beside it nor a metadata entry 'config'");
      text = entry->second;
    }
    nlohmann::json config = detail::parse_json(text, source, 0);
    if (!config.is_object())
      throw FormatError(source, "", 0, "the configuration is no JSON object");
    return Checkpoint(std::move(tensors), std::move(config), std::move(source));
  }

  const Tensors& tensors() const noexcept { return tensors_; }
  const nlohmann::json& config() const noexcept { return config_; }
  /// The file that the configuration came from.
  const std::string& config_source() const noexcept { return config_source_; }

  /// Throws  as the free function.
  LayerConfig layer_config() const { return io::layer_config(config_, config_source_); }

  /// The MoE block of layer `layer`, 0-based, ready to run.
  ///
  /// Throws  as load_block; a dense layer has no router, so its router's name is reported missing.
  template <class Scalar>
  CheckpointLayer<Scalar> layer(Index layer) const {
    const LayerConfig config = layer_config();
    return load_block<Scalar>(
        tensors_, config,
        moe::detail::text_of("model.layers.", layer, ".", detail::names_of(config.family).block));
  }

 private:
  Checkpoint(Tensors tensors, nlohmann::json config, std::string source)
      : tensors_(std::move(tensors)),
        config_(std::move(config)),
        config_source_(std::move(source)) {}

  Tensors tensors_;
  nlohmann::json config_;
  std::string config_source_;
};

}  // namespace moe::inline MOE_ABI::io
