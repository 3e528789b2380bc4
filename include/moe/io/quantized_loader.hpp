// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// load_quantized_block: one MoE block whose experts take few bits. (optional: needs nlohmann_json)
#pragma once

#include <optional>
#include <string>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_product.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/quantize.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/bank_factory.hpp"
#include "moe/io/block_loader.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/families.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/tensors.hpp"
#include "moe/layer/calibrate.hpp"

namespace moe::inline MOE_ABI::io {

/// How a block's routed experts are quantised; shared experts and routers stay floats.
struct QuantizedLoading {
  std::optional<ExpertFormat> format{};  ///< none: as the checkpoint has them, in fp8 or mxfp4
  ScaleSearch search = ScaleSearch::least_error;
  ProductKind product = ProductKind::integer;
  /// Tokens (T, D) that the block may get, all of which every expert is calibrated with: an error
  /// counts what it is multiplied with (see expert_moments). Empty: all errors count the same, as
  /// they do for ScaleSearch::nearest. Codes that are taken over as they are stay so.
  Matrix<float> calibration{};
};

namespace detail {

/// Without calibration tokens, none.
template <class ActivationT>
ExpertMoments moments_of(const ExpertMatrices<float>& expert, const ActivationT& activation,
                         const Matrix<float>& calibration) {
  return calibration.size() == 0 ? ExpertMoments{}
                                 : expert_moments(expert, activation, calibration);
}

inline AnyExperts<float> load_quantized_experts(const BlockReader<float>& reader,
                                                const LayerConfig& config,
                                                const QuantizedLoading& loading) {
  const std::optional<WeightFormat> stored = reader.stored_format();
  if (!loading.format && !stored)
    moe::detail::throw_invalid(
        "load_quantized_block",
        "the experts are stored as floats: name the format that they are to have");
  const ExpertFormat format = loading.format ? *loading.format : ExpertFormat{*stored, *stored};
  const ExpertsConfig sizes = reader.sizes();
  const bool as_stored = stored && format == ExpertFormat{*stored, *stored};
  return with_activation(config, reader.is_gated(), [&](auto activation) -> AnyExperts<float> {
    QuantizedExperts<decltype(activation)> bank(sizes, format, activation);
    bank.set_product(loading.product);
    for (Index e = 0; e < sizes.num_experts; ++e) {
      if (as_stored) {
        reader.with_codes(
            e, [&](const CodedExpertSource& source) { bank.set_expert_codes(e, source); });
        if (sizes.biases) bank.set_expert_biases(e, reader.biases(e).weights());
        continue;
      }
      const ExpertMatrices<float> expert = reader.matrices(e);
      const ExpertMoments moments = moments_of(expert, activation, loading.calibration);
      bank.set_expert(e, expert.weights(), moments.options(loading.search));
    }
    return bank;
  });
}

}  // namespace detail

/// As load_block, with experts that are quantised one by one, or, where the checkpoint has them in
/// the same format, taken over code by code.
///
/// Throws  as load_block; FormatError naming tensor and offset of a scale or weight that is not
///         finite; std::invalid_argument if no format is named and the experts are floats, or a
///         weight is beyond the format; what expert_moments throws.
inline CheckpointLayer<float> load_quantized_block(const Tensors& tensors,
                                                   const LayerConfig& config,
                                                   const std::string& prefix,
                                                   const QuantizedLoading& loading = {}) {
  const detail::BlockReader<float> reader(tensors, config, prefix);
  CheckpointLayer<float> layer =
      reader.layer(detail::load_quantized_experts(reader, config, loading));
  reader.check_that_all_is_read();
  return layer;
}

/// The MoE block of layer `layer` of a checkpoint, 0-based, as Checkpoint::layer.
///
/// Throws  as above.
inline CheckpointLayer<float> quantized_layer(const Checkpoint& checkpoint, Index layer,
                                              const QuantizedLoading& loading = {},
                                              Stack stack = Stack::encoder) {
  const LayerConfig config = checkpoint.layer_config();
  return load_quantized_block(
      checkpoint.tensors(), config,
      detail::block_prefix(config.family, layer, stack, checkpoint.tensors()), loading);
}

}  // namespace moe::inline MOE_ABI::io
