// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// MoE layers from GGUF files of Mixtral, Qwen3-MoE, DeepSeek-V2 and V3, and gpt-oss. (optional:
// needs nlohmann_json)
//
// Source  llama.cpp's names of keys and tensors, gguf-py/gguf/constants.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_matrix.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/io/bank_factory.hpp"
#include "moe/io/block_loader.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_blocks.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/quantized_loader.hpp"
#include "moe/io/stored_codes.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/topk_router.hpp"

namespace moe::inline MOE_ABI::io {
namespace detail {

/// One block of a file; shapes are checked before any memory is taken.
class GgufBlock {
 public:
  /// Throws  FormatError naming a tensor that is missing or has another shape.
  GgufBlock(const GgufFile& file, const LayerConfig& config, Index layer)
      : file_(file), config_(config), prefix_(moe::detail::text_of("blk.", layer, ".")) {
    const Index experts = config_.num_experts;
    require(prefix_ + "ffn_gate_inp.weight", {experts, config_.d_model});
    if (config_.family == Family::deepseek_v3) require(prefix_ + "exp_probs_b.bias", {experts});
    if (sizes().biases) {
      require(prefix_ + "ffn_gate_inp.bias", {experts});
      require(bias_name("gate"), {experts, config_.d_ff});
      require(bias_name("up"), {experts, config_.d_ff});
      require(bias_name("down"), {experts, config_.d_model});
    }
    for (const std::string_view part : parts) {
      for (Index e = 0; e < experts; ++e) rows_of(e, part);
      if (has_shared()) shared_rows(part);
    }
  }

  TopKRouter<float> router() const {
    RouterWeights<float> weights;
    weights.weight = matrix("ffn_gate_inp.weight", config_.num_experts, config_.d_model);
    if (config_.family == Family::gpt_oss)
      weights.bias = matrix("ffn_gate_inp.bias", 1, config_.num_experts).row(0).transpose();
    if (config_.family == Family::deepseek_v3)
      weights.selection_bias =
          matrix("exp_probs_b.bias", 1, config_.num_experts).row(0).transpose();
    return {{.d_model = config_.d_model,
             .num_experts = config_.num_experts,
             .top_k = config_.top_k,
             .rule = config_.rule},
            std::move(weights)};
  }

  ExpertsConfig sizes() const {
    return {.num_experts = config_.num_experts,
            .d_model = config_.d_model,
            .d_ff = config_.d_ff,
            .biases = config_.family == Family::gpt_oss};
  }
  bool is_gated() const { return true; }

  /// The formats of ours that have the grids of an expert's matrices.
  StoredParts stored_parts(Index e) const {
    return {rows_of(e, "gate").format(), rows_of(e, "up").format(), rows_of(e, "down").format()};
  }

  /// The codes of these.
  CodedExpertSource codes(Index e) const {
    return {coded(rows_of(e, "gate")), coded(rows_of(e, "up")), coded(rows_of(e, "down"))};
  }

  /// Throws  FormatError naming a part that no format has the grid of, or not that of up.
  [[noreturn]] MOE_COLD void fail_stored(Index e, ExpertPart part) const {
    const Rows rows = rows_of(e, parts[static_cast<std::size_t>(part)]);
    throw FormatError(
        file_.path_of(*rows.tensor), rows.name, rows.tensor->offset,
        moe::detail::text_of("no format has the grid of ", gguf_type(rows.tensor->type).name,
                             ", or gate not that of up: name the format that the experts are to "
                             "have"));
  }

  /// Throws  FormatError naming a row's offset if a weight or a bias is not finite, or as
  ///         `checked_codes`.
  ExpertMatrices<float> matrices(Index e) const {
    ExpertMatrices<float> expert;
    if (sizes().biases) expert = biases(e);
    expert.gate = widened(rows_of(e, "gate"));
    expert.up = widened(rows_of(e, "up"));
    expert.down = widened(rows_of(e, "down"));
    return expert;
  }
  /// Throws  as `matrices`.
  ExpertMatrices<float> biases(Index e) const {
    ExpertMatrices<float> expert;
    expert.gate_bias = bias(e, "gate", config_.d_ff);
    expert.up_bias = bias(e, "up", config_.d_ff);
    expert.down_bias = bias(e, "down", config_.d_model);
    return expert;
  }

  bool has_shared() const { return config_.shared_d_ff > 0; }
  ExpertsConfig shared_sizes() const {
    return {.num_experts = 1, .d_model = config_.d_model, .d_ff = config_.shared_d_ff};
  }
  Matrix<float> shared_gate() const { return {}; }
  StoredParts stored_shared() const {
    return {shared_rows("gate").format(), shared_rows("up").format(), shared_rows("down").format()};
  }
  CodedExpertSource shared_codes() const {
    return {coded(shared_rows("gate")), coded(shared_rows("up")), coded(shared_rows("down"))};
  }
  SharedExperts<AnyExperts<float>> shared() const {
    if (!has_shared()) return {};
    return SharedExperts<AnyExperts<float>>(
        make_bank<float>(config_, shared_sizes(), true, [&](Index /*e*/) {
          ExpertMatrices<float> m;
          m.gate = widened(shared_rows("gate"));
          m.up = widened(shared_rows("up"));
          m.down = widened(shared_rows("down"));
          return m;
        }));
  }

  /// The block with these as its experts.
  CheckpointLayer<float> layer(AnyExperts<float> experts,
                               SharedExperts<AnyExperts<float>> shared) const {
    return {router(), std::move(experts), std::move(shared), config_.capacity};
  }

 private:
  static constexpr std::string_view parts[] = {"gate", "up", "down"};

  /// Where the outputs of an expert's matrix stand: in a tensor of all experts, or one of its own.
  struct Rows {
    const GgufTensor* tensor;
    std::string name;
    Index first;
    Index outputs;

    std::optional<WeightFormat> format() const { return same_grid(tensor->type); }
  };

  Rows rows_of(Index e, std::string_view part) const {
    const std::vector<Index> shape = shape_of(part, config_.d_ff);
    const std::string all = moe::detail::text_of(prefix_, "ffn_", part, "_exps.weight");
    if (file_.contains(all)) {
      const GgufTensor& tensor = require(all, {config_.num_experts, shape[0], shape[1]});
      return {&tensor, all, e * shape[0], shape[0]};
    }
    const std::string own = moe::detail::text_of(prefix_, "ffn_", part, ".", e, ".weight");
    return {&require(own, shape), own, 0, shape[0]};
  }
  Rows shared_rows(std::string_view part) const {
    const std::vector<Index> shape = shape_of(part, config_.shared_d_ff);
    const std::string name = moe::detail::text_of(prefix_, "ffn_", part, "_shexp.weight");
    return {&require(name, shape), name, 0, shape[0]};
  }
  std::vector<Index> shape_of(std::string_view part, Index d_ff) const {
    return part == "down" ? std::vector<Index>{config_.d_model, d_ff}
                          : std::vector<Index>{d_ff, config_.d_model};
  }

  const GgufTensor& require(const std::string& name, const std::vector<Index>& shape) const {
    const GgufTensor& tensor = file_.tensor(name);
    if (tensor.shape != shape)
      throw FormatError(file_.path_of(tensor), name, tensor.offset,
                        moe::detail::text_of("expected shape ", printed_shape(shape), ", found ",
                                             printed_shape(tensor.shape)));
    return tensor;
  }

  /// The codes of a matrix's outputs, or nothing if no format of ours has its grid.
  std::function<CodedOutput(Index)> coded(const Rows& rows) const {
    const std::optional<WeightFormat> format = rows.format();
    if (!format) return {};
    return [this, rows, layout = MatrixLayout(*format, 1, rows.tensor->inner())](Index o) {
      return checked_codes(rows, rows.first + o, layout);
    };
  }

  [[noreturn]] MOE_COLD void fail_row(const Rows& rows, Index row,
                                      const std::string& problem) const {
    throw FormatError(
        file_.path_of(*rows.tensor), rows.name,
        rows.tensor->offset + static_cast<std::uint64_t>(row) * rows.tensor->row_bytes(), problem);
  }

  /// The codes of a row. A group of zeros may have a scale of zero and any code.
  ///
  /// Throws  FormatError naming the row's offset if a scale or a weight is not finite, or a scale
  ///         is zero where the codes of its group differ.
  CodedOutput checked_codes(const Rows& rows, Index row, const MatrixLayout& layout) const {
    CodedOutput output = codes_of(rows.tensor->type, rows.tensor->row(row), layout.inner);
    auto code = output.codes.begin();
    for (const float scale : output.scales) {
      const auto end = code + std::min<std::ptrdiff_t>(layout.group, output.codes.end() - code);
      if (!std::isfinite(scale)) fail_row(rows, row, "a scale is not finite");
      if (scale == 0 && std::any_of(code, end, [&](auto other) { return other != *code; }))
        fail_row(rows, row, "the scale of a weight is zero");
      code = end;
    }
    if (moe::detail::first_not_finite(layout, output) < layout.inner)
      fail_row(rows, row, "a weight is not finite");
    return output;
  }

  Matrix<float> widened(const Rows& rows) const {
    Matrix<float> result(rows.outputs, rows.tensor->inner());
    parallel::for_each_block(result.rows(), 16, [&](Index begin, Index end) {
      for (Index o = begin; o < end; ++o)
        decode_finite(rows, rows.first + o,
                      {moe::detail::row_data(result, o), static_cast<std::size_t>(result.cols())});
    });
    return result;
  }

  /// Throws  FormatError naming the row's offset if a value is not finite, or as `checked_codes`.
  void decode_finite(const Rows& rows, Index row, std::span<float> to) const {
    if (const auto format = rows.format(); format && format->group != 0) {
      const MatrixLayout layout(*format, 1, rows.tensor->inner());
      moe::detail::decode_output(layout, checked_codes(rows, row, layout), to.data());
      return;
    }
    rows.tensor->decode_row(row, to.data());
    for (const float value : to)
      if (!std::isfinite(value)) fail_row(rows, row, "a value is not finite");
  }

  /// A tensor of few values, widened.
  Matrix<float> matrix(std::string_view part, Index rows, Index cols) const {
    const std::string name = moe::detail::text_of(prefix_, part);
    const GgufTensor& tensor = rows == 1 ? require(name, {cols}) : require(name, {rows, cols});
    Matrix<float> result(rows, cols);
    for (Index r = 0; r < rows; ++r) tensor.decode_row(r, moe::detail::row_data(result, r));
    return result;
  }

  std::string bias_name(std::string_view part) const {
    return moe::detail::text_of(prefix_, "ffn_", part, "_exps.bias");
  }

  /// (size, 1), of one expert.
  Matrix<float> bias(Index e, std::string_view part, Index size) const {
    Matrix<float> result(size, 1);
    const std::string name = bias_name(part);
    decode_finite({&file_.tensor(name), name, 0, config_.num_experts}, e,
                  {result.data(), static_cast<std::size_t>(size)});
    return result;
  }

  const GgufFile& file_;
  const LayerConfig& config_;
  std::string prefix_;
};

/// The metadata of a file by the names of config.json.
inline nlohmann::json gguf_config(const GgufFile& file) {
  const auto fail = [&](const std::string& problem) {
    throw FormatError(file.path(), "", 0, problem);
  };
  const auto find = [&](const std::string& key) -> const GgufValue* {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? nullptr : &found->second;
  };
  const GgufValue* const name = find("general.architecture");
  const auto* const text = name == nullptr ? nullptr : std::get_if<std::string>(name);
  if (text == nullptr) fail("the metadata has no general.architecture");
  const std::string& arch = *text;
  const auto number = [&](const char* key, std::optional<double> otherwise = std::nullopt) {
    const std::string full = moe::detail::text_of(arch, ".", key);
    const GgufValue* const value = find(full);
    if (value != nullptr) {
      if (const auto* const u = std::get_if<std::uint64_t>(value)) return static_cast<double>(*u);
      if (const auto* const i = std::get_if<std::int64_t>(value)) return static_cast<double>(*i);
      if (const auto* const d = std::get_if<double>(value)) return *d;
      if (const auto* const b = std::get_if<bool>(value)) return *b ? 1.0 : 0.0;
      fail(moe::detail::text_of(full, " is no number"));
    }
    if (!otherwise) fail(moe::detail::text_of("the metadata has no ", full));
    return *otherwise;
  };
  const auto whole = [&](const char* key, std::optional<double> otherwise = std::nullopt) {
    const double value = number(key, otherwise);
    if (!(value >= 0 && value < 1e9 && value == std::floor(value)))
      fail(moe::detail::text_of(arch, ".", key, " makes no sense"));
    return static_cast<std::int64_t>(value);
  };
  nlohmann::json config{{"hidden_size", whole("embedding_length")},
                        {"num_experts_per_tok", whole("expert_used_count")}};
  const std::int64_t experts = whole("expert_count");
  const auto width = [&] { return whole("expert_feed_forward_length"); };
  if (arch == "llama") {
    config.update({{"model_type", "mixtral"},
                   {"intermediate_size", whole("feed_forward_length")},
                   {"num_local_experts", experts}});
  } else if (arch == "qwen3moe") {
    config.update({{"model_type", "qwen3_moe"},
                   {"moe_intermediate_size", width()},
                   {"num_experts", experts},
                   {"norm_topk_prob", true}});
  } else if (arch == "gpt-oss") {
    config.update({{"model_type", "gpt_oss"},
                   {"intermediate_size", width()},
                   {"num_local_experts", experts}});
  } else if (arch == "deepseek2") {
    const bool is_v3 = whole("expert_gating_func", 1) == 2;
    const std::int64_t groups = whole("expert_group_count", 1);  // Without, there are none.
    config.update({{"model_type", is_v3 ? "deepseek_v3" : "deepseek_v2"},
                   {"moe_intermediate_size", width()},
                   {"n_routed_experts", experts},
                   {"n_shared_experts", whole("expert_shared_count", 0)},
                   {"routed_scaling_factor", number("expert_weights_scale", 1)},
                   {"norm_topk_prob", number("expert_weights_norm", 0) != 0},
                   {"n_group", groups},
                   {"topk_group", whole("expert_group_used_count", 1)}});
    if (!is_v3) config["topk_method"] = groups > 1 ? "group_limited_greedy" : "greedy";
  } else {
    fail(moe::detail::text_of("the architecture '", arch,
                              "' is not supported; llama, qwen3moe, deepseek2 and gpt-oss are"));
  }
  return config;
}

}  // namespace detail

/// Sizes and conventions of a file's MoE layers. DeepSeek-V3's experts are chosen in groups where
/// the metadata has `expert_group_count`, and without groups where it has not.
///
/// Throws  FormatError if the architecture is not supported, or the metadata lacks a key or has one
///         that makes no sense.
inline LayerConfig layer_config(const GgufFile& file) {
  return layer_config(detail::gguf_config(file), file.path());
}

/// The layers of a file that have an MoE block, 0-based, in order.
inline std::vector<Index> moe_layers(const GgufFile& file) {
  constexpr Index most = 10'000;
  std::vector<Index> layers;
  for (Index layer = 0; layer < most; ++layer)
    if (file.contains(moe::detail::text_of("blk.", layer, ".ffn_gate_inp.weight")))
      layers.push_back(layer);
  return layers;
}

/// The MoE block of a layer. Matrices of a type whose grid the format has that they are to have are
/// taken over code by code: Q8_0 has that of int8-g32, Q4_0 of int4-g32, MXFP4, BF16 and F16 have
/// those of formats of the same name. Others are widened as the type defines it, and quantised.
/// Where no format is named, each expert has the formats of its types; Q4_K and Q6_K need a name. A
/// shared expert of such types keeps its codes, another's weights become floats.
///
/// Throws  FormatError naming the tensor that is missing or has another shape, or, if no format is
///         named, has another grid than any format, or than up if it is gate; naming the offset,
///         too, of a row with a weight or bias that is not finite, or, of Q8_0, Q4_0 and MXFP4,
///         with a scale that is not finite, or is zero where the codes of its group differ;
///         std::invalid_argument if a weight is beyond the format that is named; what
///         expert_moments throws.
inline CheckpointLayer<float> load_gguf_block(const GgufFile& file, const LayerConfig& config,
                                              Index layer, const QuantizedLoading& loading = {}) {
  const detail::GgufBlock block(file, config, layer);
  return block.layer(detail::load_quantized_experts(block, config, loading),
                     detail::load_stored_shared(block, config, loading.product));
}

}  // namespace moe::inline MOE_ABI::io
