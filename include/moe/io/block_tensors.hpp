// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The tensors of one MoE block by the names of its family. (optional: needs nlohmann_json)
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_matrix.hpp"
#include "moe/io/families.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/stored_codes.hpp"
#include "moe/io/tensors.hpp"

namespace moe::inline MOE_ABI::io::detail {

/// Names of a block's tensors, with a note of those that were asked for, and matrices in the forms
/// in which checkpoints have them.
class BlockTensors {
 public:
  /// Throws FormatError if the block has a tensor that nobody asked for: what it means for the
  /// output is not known.
  void check_that_all_is_read() const {
    for (const std::string& tensor : tensors_.names_below(prefix_))
      if (!used_.contains(tensor))
        throw FormatError(
            tensors_.file_of(tensor), tensor, tensors_.tensor(tensor).offset,
            moe::detail::text_of("is no part of a block of the family ", traits_.model_type));
  }

 protected:
  BlockTensors(const Tensors& tensors, const LayerConfig& config, std::string prefix)
      : tensors_(tensors),
        config_(config),
        traits_(traits_of(config.family)),
        prefix_(std::move(prefix)) {}
  ~BlockTensors() = default;

  template <class... Parts>
  std::string name(const Parts&... parts) const {
    return *used_.insert(moe::detail::text_of(prefix_, parts...)).first;
  }

  bool is_plain() const {
    return traits_.layout == ExpertLayout::plain || traits_.layout == ExpertLayout::plain_bias;
  }

  /// Throws  FormatError naming tensor and offset if one of an expert's weights is not finite.
  ///         Codes are checked where they are read.
  void require_finite_weights(Index e) const {
    switch (traits_.layout) {
      case ExpertLayout::gated:
        for (const std::string& weight : expert_names(e))
          if (!is_fp8(tensors_, weight)) require_finite(weight);
        break;
      case ExpertLayout::plain:
      case ExpertLayout::plain_bias:
        for (const std::string_view part : {traits_.up, traits_.down})
          require_finite(expert_name(e, part, "weight"));
        break;
      case ExpertLayout::stacked:
        for (const std::string_view part : {traits_.gate, traits_.up, traits_.down})
          require_share_finite(name(part), e);
        break;
      case ExpertLayout::fused_in_out:
      case ExpertLayout::fused_biased:
        for (const std::string_view part : {traits_.up, traits_.down})
          if (!is_mxfp4()) require_share_finite(name(part), e);
        break;
      case ExpertLayout::fused_out_in:
        for (const std::string_view part : {traits_.up, traits_.down})
          require_share_finite(name(part, ".weight"), e);
        break;
    }
  }
  /// The same of its biases, where there are any.
  void require_finite_biases(Index e) const {
    if (traits_.layout == ExpertLayout::plain_bias)
      for (const std::string_view part : {traits_.up, traits_.down})
        require_finite(expert_name(e, part, "bias"));
    if (traits_.layout == ExpertLayout::fused_biased)
      for (const std::string_view part : {traits_.up, traits_.down})
        require_share_finite(name(part, "_bias"), e);
  }

  /// "<block>experts.<e>." or the plain experts' form of it.
  std::string expert_name(Index e, std::string_view role, std::string_view kind) const {
    return name(is_plain() ? "experts.expert_" : "experts.", e, ".", role, ".", kind);
  }

  /// Granite's shared expert stands beside the block, fused; others have three matrices in it.
  std::string shared_name(std::string_view role) const {
    if (config_.family != Family::granitemoe) return name(traits_.shared, role, ".weight");
    return moe::detail::text_of(block_parent(prefix_), traits_.shared, role, ".weight");
  }
  /// Of gate, up and down.
  std::array<std::string, 3> expert_names(Index e) const {
    return {expert_name(e, traits_.gate, "weight"), expert_name(e, traits_.up, "weight"),
            expert_name(e, traits_.down, "weight")};
  }
  std::array<std::string, 3> shared_names() const {
    return {shared_name("gate_proj"), shared_name("up_proj"), shared_name("down_proj")};
  }

  /// What is stored in eight bits of three matrices, gate, up and down, by their names.
  StoredParts fp8_parts(const std::array<std::string, 3>& weights) const {
    const auto format = [&](const std::string& weight) -> std::optional<WeightFormat> {
      if (!is_fp8(tensors_, weight)) return std::nullopt;
      return Fp8Matrix::format_of(tensors_.tensor(weight).dtype);
    };
    return {format(weights[0]), format(weights[1]), format(weights[2])};
  }
  /// The codes of those.
  CodedExpertSource fp8_codes(const std::array<std::string, 3>& weights, Index d_ff) const {
    const auto outputs = [&](const std::string& weight, Index rows,
                             Index inner) -> std::function<CodedOutput(Index)> {
      if (!is_fp8(tensors_, weight)) return {};
      used_.insert(Fp8Matrix::scales_of(weight));
      return
          [matrix = Fp8Matrix(tensors_, weight, rows, inner)](Index o) { return matrix.output(o); };
    };
    CodedExpertSource result;
    result.gate = outputs(weights[0], d_ff, config_.d_model);
    result.up = outputs(weights[1], d_ff, config_.d_model);
    result.down = outputs(weights[2], config_.d_model, d_ff);
    return result;
  }

  /// A matrix of a linear layer, in floats or in eight bits with scales.
  template <class Scalar>
  Matrix<Scalar> linear(const std::string& weight, Index outputs, Index inner) const {
    if (!is_fp8(tensors_, weight)) return tensors_.matrix<Scalar>(weight, outputs, inner);
    used_.insert(Fp8Matrix::scales_of(weight));
    return Fp8Matrix(tensors_, weight, outputs, inner).template widened<Scalar>();
  }

  /// Whether the experts of gpt-oss are in mxfp4, as they are published.
  bool is_mxfp4() const {
    return traits_.layout == ExpertLayout::fused_biased &&
           tensors_.contains(prefix_ + Mxfp4Matrices::blocks_of(std::string(traits_.up)));
  }
  Mxfp4Matrices mxfp4(std::string_view part, Index outputs, Index inner) const {
    const std::string matrix = moe::detail::text_of(prefix_, part);
    used_.insert(Mxfp4Matrices::blocks_of(matrix));
    used_.insert(Mxfp4Matrices::scales_of(matrix));
    return {tensors_, matrix, config_.num_experts, outputs, inner};
  }

  const Tensors& tensors_;
  const LayerConfig& config_;
  const FamilyTraits& traits_;
  std::string prefix_;

 private:
  void require_finite(const std::string& tensor) const {
    tensors_.require_finite(tensor, 0, tensors_.tensor(tensor).size());
  }
  /// An expert's share of a tensor of all experts.
  void require_share_finite(const std::string& tensor, Index e) const {
    const Index its = tensors_.tensor(tensor).size() / config_.num_experts;
    tensors_.require_finite(tensor, e * its, its);
  }

  mutable std::set<std::string> used_;
};

}  // namespace moe::inline MOE_ABI::io::detail
