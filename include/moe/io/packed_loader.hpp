// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// packed_layer: a checkpoint's MoE block whose routed experts lie in a packed file. (optional:
// needs nlohmann_json)
#pragma once

#include <string>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/coded_product.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/bank_factory.hpp"
#include "moe/io/block_loader.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_loader.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/packed.hpp"
#include "moe/io/quantized_loader.hpp"

namespace moe::inline MOE_ABI::io {

/// The name that a layer's bank has in a packed file of a checkpoint: "layers.<layer>", or
/// "decoder.layers.<layer>" in the decoder of an encoder-decoder model; the stack of other models
/// is Stack::encoder here.
inline std::string packed_bank_name(Index layer, Stack stack = Stack::encoder) {
  return moe::detail::text_of(stack == Stack::decoder ? "decoder." : "", "layers.", layer);
}

namespace detail {

/// A layer's bank in a packed file, for a checkpoint whose experts have these sizes.
template <class Reader>
AnyExperts<float> packed_experts(const Reader& reader, const LayerConfig& config,
                                 const std::string& name, const PackedFile& packed,
                                 ProductKind product) {
  const ExpertsConfig sizes = reader.sizes();
  return with_activation(config, reader.is_gated(), [&](auto activation) -> AnyExperts<float> {
    QuantizedExperts<decltype(activation)> bank = packed.template bank<decltype(activation)>(name);
    if (bank.num_experts() != sizes.num_experts || bank.d_model() != sizes.d_model ||
        bank.d_ff() != sizes.d_ff || bank.has_biases() != sizes.biases)
      throw FormatError(packed.path(), name, 0,
                        "the bank has other sizes than the checkpoint's experts");
    bank.set_product(product);
    return bank;
  });
}

}  // namespace detail

/// The MoE block of layer `layer` of a checkpoint, 0-based, with the experts of a packed file,
/// mapped: of its bank `packed_bank_name(layer, stack)`, where `stack` matters for encoder-decoder
/// models only. The checkpoint gives router and shared experts, these in codes or floats as
/// QuantizedLoading says, with the same kind of product. Its routed experts must be there and have
/// their shapes, but are not read.
///
/// Throws  FormatError naming the checkpoint's tensor that is missing or does not fit, or the
///         packed file if it has no such bank, or one of other sizes or another activation.
inline CheckpointLayer<float> packed_layer(const Checkpoint& checkpoint, Index layer,
                                           const PackedFile& packed,
                                           ProductKind product = ProductKind::integer,
                                           Stack stack = Stack::encoder) {
  const LayerConfig config = checkpoint.layer_config();
  const detail::BlockReader<float> reader(checkpoint.tensors(), config,
                                          checkpoint.block_prefix(layer, stack));
  // Only names of an encoder-decoder model tell its stacks apart.
  const bool has_stacks = checkpoint.is_encoder_decoder();
  const std::string name = packed_bank_name(layer, has_stacks ? stack : Stack::encoder);
  return reader.layer(detail::packed_experts(reader, config, name, packed, product),
                      detail::load_stored_shared(reader, config, product));
}

/// The same for a GGUF file.
///
/// Throws  as above.
inline CheckpointLayer<float> packed_layer(const GgufFile& file, Index layer,
                                           const PackedFile& packed,
                                           ProductKind product = ProductKind::integer) {
  const LayerConfig config = layer_config(file);
  const detail::GgufBlock reader(file, config, layer);
  return reader.layer(
      detail::packed_experts(reader, config, packed_bank_name(layer), packed, product),
      detail::load_stored_shared(reader, config, product));
}

}  // namespace moe::inline MOE_ABI::io
