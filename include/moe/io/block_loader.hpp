// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// load_block: one MoE block from a family's tensors. (optional: needs nlohmann_json)
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/packed_experts.hpp"
#include "moe/io/bank_factory.hpp"
#include "moe/io/block_tensors.hpp"
#include "moe/io/families.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/stored_codes.hpp"
#include "moe/io/tensors.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/sparse_moe.hpp"
#include "moe/routing/any_router.hpp"
#include "moe/routing/sparse_mixer_router.hpp"
#include "moe/routing/topk_router.hpp"

namespace moe::inline MOE_ABI::io {

/// What every supported family loads as. `router().target<TopKRouter<Scalar>>()` and
/// `experts().target<SwiGluExperts<Scalar>>()` give the parts by their types, or null.
template <class Scalar>
using CheckpointLayer = SparseMoe<AnyRouter<Scalar>, AnyExperts<Scalar>>;

namespace detail {

/// Reads the parts of one block; shapes are checked before any memory is taken.
template <class Scalar>
class BlockReader : private BlockTensors {
 public:
  using BlockTensors::check_that_all_is_read;

  BlockReader(const Tensors& tensors, const LayerConfig& config, std::string prefix)
      : BlockTensors(tensors, config, std::move(prefix)) {
    moe::detail::product("load_block", moe::detail::product("load_block", 2, config_.d_ff),
                         moe::detail::product("load_block", config_.num_experts, config_.d_model));
    moe::detail::product("load_block", 2, config_.shared_d_ff);
    tensors_.require(name(traits_.router), config_.num_experts, config_.d_model);
    for (Index e = 0; e < config_.num_experts; ++e) require_expert(e);
    if (config_.shared_d_ff > 0) require_shared();
  }

  AnyRouter<Scalar> router() const {
    const Index experts = config_.num_experts;
    RouterWeights<Scalar> weights;
    weights.weight = tensors_.matrix<Scalar>(name(traits_.router), experts, config_.d_model);
    if (config_.family == Family::phimoe)
      return SparseMixerRouter<Scalar>({.d_model = config_.d_model,
                                        .num_experts = experts,
                                        .jitter = config_.sparse_mixer_jitter,
                                        .input_jitter = config_.input_jitter},
                                       std::move(weights.weight));
    if (config_.family == Family::gpt_oss)
      weights.bias = tensors_.vector<Scalar>(name("router.bias"), experts);
    if (config_.router_bias)
      weights.bias = tensors_.vector<Scalar>(name("router.classifier.bias"), experts);
    if (!traits_.selection_bias.empty()) {
      const std::string bias = name(traits_.selection_bias);
      // ERNIE stores a row.
      const bool is_row = tensors_.tensor(bias).shape.size() == 2;
      weights.selection_bias = is_row ? tensors_.matrix<Scalar>(bias, 1, experts).row(0).transpose()
                                      : tensors_.vector<Scalar>(bias, experts);
    }
    return TopKRouter<Scalar>({.d_model = config_.d_model,
                               .num_experts = experts,
                               .top_k = config_.top_k,
                               .rule = config_.rule},
                              std::move(weights));
  }

  ExpertsConfig sizes() const {
    return {.num_experts = config_.num_experts,
            .d_model = config_.d_model,
            .d_ff = config_.d_ff,
            .biases = traits_.layout == ExpertLayout::plain_bias ||
                      traits_.layout == ExpertLayout::fused_biased};
  }
  bool is_gated() const { return !is_plain(); }

  /// An expert's weights and biases, to be quantised.
  ///
  /// Throws  FormatError naming tensor and offset if one is not finite, or is in codes with a scale
  ///         that makes no sense.
  ExpertMatrices<Scalar> matrices(Index e) const {
    ExpertMatrices<Scalar> result = expert(e);
    const auto is_finite = [](const auto&... matrix) { return (matrix.allFinite() && ...); };
    if (!is_finite(result.gate, result.up, result.down, result.gate_bias, result.up_bias,
                   result.down_bias)) {
      require_finite_biases(e);
      require_finite_weights(e);
    }
    return result;
  }
  /// Its biases alone; of gpt-oss only.
  ///
  /// Throws  FormatError naming tensor and offset if one is not finite.
  ExpertMatrices<Scalar> biases(Index e) const {
    require_finite_biases(e);
    return its_biases(e);
  }

  AnyExperts<Scalar> experts() const {
    return make_bank<Scalar>(config_, sizes(), is_gated(), [&](Index e) { return expert(e); });
  }

  /// What is stored in formats of ours with scales of an expert's matrices.
  StoredParts stored_parts(Index e) const {
    constexpr WeightFormat four_bits = Mxfp4Matrices::format();
    if (is_mxfp4()) return {four_bits, four_bits, four_bits};
    return traits_.layout == ExpertLayout::gated ? fp8_parts(expert_names(e)) : StoredParts{};
  }

  /// The codes of these.
  CodedExpertSource codes(Index e) const {
    if (!is_mxfp4()) return fp8_codes(expert_names(e), config_.d_ff);
    const Mxfp4Matrices fused = mxfp4(traits_.up, 2 * config_.d_ff, config_.d_model);
    const Mxfp4Matrices down = mxfp4(traits_.down, config_.d_model, config_.d_ff);
    return {[fused, e](Index o) { return fused.output(e, 2 * o); },
            [fused, e](Index o) { return fused.output(e, 2 * o + 1); },
            [down, e](Index o) { return down.output(e, o); }};
  }

  /// Throws  FormatError naming a part that has no format of its own where other experts have, or
  ///         std::invalid_argument where none has.
  [[noreturn]] MOE_COLD void fail_stored(Index e, ExpertPart part) const {
    if (!stored_parts(0).up)
      moe::detail::throw_invalid(
          "load_quantized_block",
          "the experts are stored as floats: name the format that they are to have");
    const std::string weight = expert_names(e)[static_cast<std::size_t>(part)];
    throw FormatError(tensors_.file_of(weight), weight, tensors_.tensor(weight).offset,
                      "is not of eight bits, or gate not as up is: name the format that the "
                      "experts are to have");
  }

  bool has_shared() const { return config_.shared_d_ff > 0; }
  ExpertsConfig shared_sizes() const {
    return {.num_experts = 1, .d_model = config_.d_model, .d_ff = config_.shared_d_ff};
  }
  /// (1, D), or empty.
  Matrix<Scalar> shared_gate() const {
    if (config_.family != Family::qwen2_moe) return {};
    return tensors_.matrix<Scalar>(name("shared_expert_gate.weight"), 1, config_.d_model);
  }

  StoredParts stored_shared() const {
    return config_.family == Family::granitemoe ? StoredParts{} : fp8_parts(shared_names());
  }
  CodedExpertSource shared_codes() const { return fp8_codes(shared_names(), config_.shared_d_ff); }

  SharedExperts<AnyExperts<Scalar>> shared() const {
    if (!has_shared()) return {};
    return SharedExperts<AnyExperts<Scalar>>(
        make_bank<Scalar>(config_, shared_sizes(), true,
                          [&](Index /*expert*/) { return shared_expert(); }),
        shared_gate());
  }

  /// The block with these as its experts.
  CheckpointLayer<Scalar> layer(AnyExperts<Scalar> experts,
                                SharedExperts<AnyExperts<Scalar>> shared) const {
    CheckpointLayer<Scalar> result(router(), std::move(experts), std::move(shared),
                                   config_.capacity);
    result.set_output_bias(output_bias());
    return result;
  }

  /// JetMoE adds a bias to the block's output.
  Vector<Scalar> output_bias() const {
    if (config_.family != Family::jetmoe) return {};
    return tensors_.vector<Scalar>(name("bias"), config_.d_model);
  }

 private:
  void require_expert(Index e) const {
    const Index d_model = config_.d_model;
    const Index d_ff = config_.d_ff;
    const Index num_experts = config_.num_experts;
    const bool is_first = e == 0;
    switch (traits_.layout) {
      case ExpertLayout::gated:
        tensors_.require(expert_name(e, traits_.gate, "weight"), d_ff, d_model);
        tensors_.require(expert_name(e, traits_.up, "weight"), d_ff, d_model);
        tensors_.require(expert_name(e, traits_.down, "weight"), d_model, d_ff);
        break;
      case ExpertLayout::plain_bias:
        tensors_.require(expert_name(e, traits_.up, "bias"), d_ff, 1);
        tensors_.require(expert_name(e, traits_.down, "bias"), d_model, 1);
        [[fallthrough]];
      case ExpertLayout::plain:
        tensors_.require(expert_name(e, traits_.up, "weight"), d_ff, d_model);
        tensors_.require(expert_name(e, traits_.down, "weight"), d_model, d_ff);
        break;
      case ExpertLayout::stacked:
        for (const std::string_view part : {traits_.gate, traits_.up, traits_.down})
          if (is_first) tensors_.require(name(part), {num_experts * d_ff, d_model});
        break;
      case ExpertLayout::fused_biased:
        if (!is_first) break;
        tensors_.require(name(traits_.up, "_bias"), {num_experts, 2 * d_ff});
        tensors_.require(name(traits_.down, "_bias"), {num_experts, d_model});
        if (is_mxfp4()) {
          mxfp4(traits_.up, 2 * d_ff, d_model);
          mxfp4(traits_.down, d_model, d_ff);
          break;
        }
        [[fallthrough]];
      case ExpertLayout::fused_in_out:
        if (!is_first) break;
        tensors_.require(name(traits_.up), {num_experts, d_model, 2 * d_ff});
        tensors_.require(name(traits_.down), {num_experts, d_ff, d_model});
        break;
      case ExpertLayout::fused_out_in:
        if (!is_first) break;
        tensors_.require(name(traits_.up, ".weight"), {num_experts, 2 * d_ff, d_model});
        tensors_.require(name(traits_.down, ".weight"), {num_experts, d_model, d_ff});
        break;
    }
  }

  void require_shared() const {
    const Index d_model = config_.d_model;
    const Index d_ff = config_.shared_d_ff;
    if (config_.family == Family::granitemoe) {
      tensors_.require(shared_name("input_linear"), 2 * d_ff, d_model);
      tensors_.require(shared_name("output_linear"), d_model, d_ff);
      return;
    }
    tensors_.require(shared_name("gate_proj"), d_ff, d_model);
    tensors_.require(shared_name("up_proj"), d_ff, d_model);
    tensors_.require(shared_name("down_proj"), d_model, d_ff);
  }

  /// Those of gpt-oss, which lie interleaved.
  ExpertMatrices<Scalar> its_biases(Index e) const {
    const Index experts = config_.num_experts;
    const auto column = [&](std::string_view part, Index size) -> Matrix<Scalar> {
      return tensors_.rows<Scalar>(name(part, "_bias"), {experts, size}, e, 1).transpose();
    };
    const Matrix<Scalar> fused = column(traits_.up, 2 * config_.d_ff);
    const Matrix<Scalar> down = column(traits_.down, config_.d_model);
    return separate<Scalar>(
        {.gate_up_bias = fused, .down_bias = down, .gate_up_order = GateUpOrder::interleaved});
  }

  ExpertMatrices<Scalar> expert(Index e) const {
    const Index d_model = config_.d_model;
    const Index d_ff = config_.d_ff;
    const Index num_experts = config_.num_experts;
    ExpertMatrices<Scalar> m;
    switch (traits_.layout) {
      case ExpertLayout::gated:
        return linear_expert(expert_names(e), d_ff);
      case ExpertLayout::plain_bias:
        m.up_bias = tensors_.matrix<Scalar>(expert_name(e, traits_.up, "bias"), d_ff, 1);
        m.down_bias = tensors_.matrix<Scalar>(expert_name(e, traits_.down, "bias"), d_model, 1);
        [[fallthrough]];
      case ExpertLayout::plain:
        m.up = tensors_.matrix<Scalar>(expert_name(e, traits_.up, "weight"), d_ff, d_model);
        m.down = tensors_.matrix<Scalar>(expert_name(e, traits_.down, "weight"), d_model, d_ff);
        return m;
      case ExpertLayout::stacked: {
        m.gate = tensors_.rows<Scalar>(name(traits_.gate), {num_experts * d_ff, d_model}, e * d_ff,
                                       d_ff);
        m.up =
            tensors_.rows<Scalar>(name(traits_.up), {num_experts * d_ff, d_model}, e * d_ff, d_ff);
        m.down =
            tensors_.rows<Scalar>(name(traits_.down), {num_experts * d_ff, d_model}, e * d_ff, d_ff)
                .transpose()
                .eval();
        return m;
      }
      case ExpertLayout::fused_in_out:
      case ExpertLayout::fused_biased: {
        const bool biased = traits_.layout == ExpertLayout::fused_biased;
        const bool in_four_bits = is_mxfp4();  // Those lie as [out, in].
        Matrix<Scalar> fused;
        Matrix<Scalar> down;
        if (in_four_bits) {
          fused = mxfp4(traits_.up, 2 * d_ff, d_model).template widened<Scalar>(e);
          down = mxfp4(traits_.down, d_model, d_ff).template widened<Scalar>(e);
        } else {
          fused = tensors_.rows<Scalar>(name(traits_.up), {num_experts, d_model, 2 * d_ff},
                                        e * d_model, d_model);
          down = tensors_.rows<Scalar>(name(traits_.down), {num_experts, d_ff, d_model}, e * d_ff,
                                       d_ff);
        }
        ExpertMatrices<Scalar> result = separate<Scalar>(
            {.gate_up = fused,
             .down = down,
             .orientation = in_four_bits ? Orientation::out_in : Orientation::in_out,
             .down_orientation = in_four_bits ? Orientation::out_in : Orientation::in_out,
             .gate_up_order = biased ? GateUpOrder::interleaved : GateUpOrder::halves});
        if (!biased) return result;
        ExpertMatrices<Scalar> its = its_biases(e);
        result.gate_bias = std::move(its.gate_bias);
        result.up_bias = std::move(its.up_bias);
        result.down_bias = std::move(its.down_bias);
        return result;
      }
      case ExpertLayout::fused_out_in: {
        const Matrix<Scalar> fused = tensors_.rows<Scalar>(
            name(traits_.up, ".weight"), {num_experts, 2 * d_ff, d_model}, e * 2 * d_ff, 2 * d_ff);
        const Matrix<Scalar> down = tensors_.rows<Scalar>(
            name(traits_.down, ".weight"), {num_experts, d_model, d_ff}, e * d_model, d_model);
        return separate<Scalar>({.gate_up = fused, .down = down});
      }
    }
    return m;
  }

  ExpertMatrices<Scalar> shared_expert() const {
    const Index d_model = config_.d_model;
    const Index d_ff = config_.shared_d_ff;
    if (config_.family == Family::granitemoe) {
      const auto fused = tensors_.matrix<Scalar>(shared_name("input_linear"), 2 * d_ff, d_model);
      const auto down = tensors_.matrix<Scalar>(shared_name("output_linear"), d_model, d_ff);
      return separate<Scalar>({.gate_up = fused, .down = down});
    }
    return linear_expert(shared_names(), d_ff);
  }

  /// Of three matrices, gate, up and down, by their names.
  ExpertMatrices<Scalar> linear_expert(const std::array<std::string, 3>& weights,
                                       Index d_ff) const {
    ExpertMatrices<Scalar> m;
    m.gate = linear<Scalar>(weights[0], d_ff, config_.d_model);
    m.up = linear<Scalar>(weights[1], d_ff, config_.d_model);
    m.down = linear<Scalar>(weights[2], config_.d_model, d_ff);
    return m;
  }
};

}  // namespace detail

/// Loads the MoE block whose tensor names begin with `prefix`, widened to Scalar expert by expert.
///
/// Throws  FormatError naming the tensor that is missing, has another shape, or is none of the
///         family's; std::invalid_argument if the rule cannot work for the sizes.
template <class Scalar>
CheckpointLayer<Scalar> load_block(const Tensors& tensors, const LayerConfig& config,
                                   const std::string& prefix) {
  const detail::BlockReader<Scalar> reader(tensors, config, prefix);
  CheckpointLayer<Scalar> layer = reader.layer(reader.experts(), reader.shared());
  reader.check_that_all_is_read();
  return layer;
}

}  // namespace moe::inline MOE_ABI::io
