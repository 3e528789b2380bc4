// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// MoE layers from published checkpoints, by their families' own tensor names. (optional: needs
// nlohmann_json)
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/block_loader.hpp"
#include "moe/io/families.hpp"
#include "moe/io/json.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/tensors.hpp"

namespace moe::inline MOE_ABI::io {

/// A checkpoint on disk: its tensors and its configuration.
class Checkpoint {
 public:
  /// Opens what `Tensors::open` opens. The configuration is `config.json` beside the file (in the
  /// folder), else the file's metadata entry `config`. Without one, the tensors' names and shapes
  /// must tell the family, and what they do not tell is as in its published models.
  ///
  /// Throws  as Tensors::open; FormatError if there is no configuration and the names are of no
  ///         known family, or it is no JSON object.
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
      if (entry == tensors.metadata().end() && find_block(tensors))
        return Checkpoint(std::move(tensors), nlohmann::json(), std::move(source));
      if (entry == tensors.metadata().end())
        throw FormatError(source, "", 0,
                          "there is neither a config.json beside it nor a metadata entry "
                          "'config', and the tensors' names are of no known family");
      text = entry->second;
    }
    nlohmann::json config = detail::parse_json(text, source, 0);
    if (!config.is_object())
      throw FormatError(source, "", 0, "the configuration is no JSON object");
    return Checkpoint(std::move(tensors), std::move(config), std::move(source));
  }

  const Tensors& tensors() const noexcept { return tensors_; }
  /// Null where there is none.
  const nlohmann::json& config() const noexcept { return config_; }
  /// The file that the configuration came from.
  const std::string& config_source() const noexcept { return config_source_; }

  /// Throws  as the free functions.
  LayerConfig layer_config() const {
    if (!config_.is_null() && config_.contains("model_type"))
      return io::layer_config(config_, config_source_);
    const std::optional<FoundBlock> found = find_block(tensors_);
    if (found && config_.is_null()) return layer_config_of_block(tensors_, *found);
    return io::layer_config(config_, config_source_,
                            found ? std::optional(found->family) : std::nullopt);
  }

  /// What the names of a layer's MoE block begin with.
  ///
  /// Throws  as layer_config.
  std::string block_prefix(Index layer, Stack stack = Stack::encoder) const {
    return detail::block_prefix(layer_config().family, layer, stack, tensors_);
  }

  /// Whether names of the model's family tell an encoder's blocks from a decoder's.
  ///
  /// Throws  as layer_config.
  bool is_encoder_decoder() const {
    const Family family = layer_config().family;
    return detail::block_prefix(family, 0, Stack::decoder, tensors_) !=
           detail::block_prefix(family, 0, Stack::encoder, tensors_);
  }

  /// The layers that have an MoE block, 0-based, in order.
  ///
  /// Throws  as layer_config.
  std::vector<Index> moe_layers(Stack stack = Stack::encoder) const {
    constexpr Index most = 10'000;
    const Family family = layer_config().family;
    const std::string router(detail::traits_of(family).router);
    std::vector<Index> layers;
    for (Index layer = 0; layer < most; ++layer)
      if (tensors_.contains(detail::block_prefix(family, layer, stack, tensors_) + router))
        layers.push_back(layer);
    return layers;
  }

  /// The MoE block of layer `layer`, 0-based, ready to run. `stack` matters for encoder-decoder
  /// models only.
  ///
  /// Throws  as load_block; a dense layer has no router, so its router's name is reported missing.
  template <class Scalar>
  CheckpointLayer<Scalar> layer(Index layer, Stack stack = Stack::encoder) const {
    const LayerConfig config = layer_config();
    return load_block<Scalar>(tensors_, config,
                              detail::block_prefix(config.family, layer, stack, tensors_));
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
