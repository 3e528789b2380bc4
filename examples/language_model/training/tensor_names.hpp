// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Published names of the tensors of a layer.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include <moe/io/families.hpp>

#include "language_model/training/parameter.hpp"

namespace language_model::training {

inline std::string layer_prefix(Index layer) {
  return std::string("model.layers.").append(std::to_string(layer)).append(".");
}

/// The three matrices of an expert, each followed by ".weight".
struct ExpertNames {
  std::string gate;
  std::string up;
  std::string down;
};

/// Of an ordinary feed-forward block.
inline ExpertNames dense_names(Index layer) {
  const std::string mlp = layer_prefix(layer) + "mlp.";
  return {mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj"};
}

/// Of a mixture, as the library's table of families has them.
class MixtureNames {
 public:
  /// `model_type` is one that `read_config` knows.
  MixtureNames(const std::string& model_type, Index layer)
      : traits_(traits_of(model_type)), block_(traits_.block) {
    block_.replace(block_.find('#'), 1, std::to_string(layer));
  }

  std::string router() const { return block_ + std::string(traits_.router); }
  /// Empty where the family has none.
  std::string selection_bias() const {
    return traits_.selection_bias.empty() ? "" : block_ + std::string(traits_.selection_bias);
  }
  ExpertNames expert(Index e) const { return of(block_ + "experts." + std::to_string(e) + "."); }
  ExpertNames shared() const { return of(block_ + std::string(traits_.shared)); }

 private:
  static const moe::io::detail::FamilyTraits& traits_of(const std::string& model_type) {
    const auto& families = moe::io::detail::families;
    return *std::find_if(families.begin(), families.end(),
                         [&](const auto& traits) { return traits.model_type == model_type; });
  }

  ExpertNames of(const std::string& prefix) const {
    const auto name = [&](std::string_view matrix) { return prefix + std::string(matrix); };
    return {name(traits_.gate), name(traits_.up), name(traits_.down)};
  }

  const moe::io::detail::FamilyTraits& traits_;
  std::string block_;
};

}  // namespace language_model::training
