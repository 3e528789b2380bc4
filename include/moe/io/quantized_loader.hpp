// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// load_quantized_block: one MoE block whose experts take few bits. (optional: needs nlohmann_json)
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_matrix.hpp"
#include "moe/experts/coded_product.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/quantize.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/bank_factory.hpp"
#include "moe/io/block_loader.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/families.hpp"
#include "moe/io/layer_config.hpp"
#include "moe/io/stored_codes.hpp"
#include "moe/io/tensors.hpp"
#include "moe/layer/calibrate.hpp"
#include "moe/layer/shared_experts.hpp"

namespace moe::inline MOE_ABI::io {

/// How a block's routed experts are quantised. Shared experts are taken over in their codes where
/// the routed ones could be (fp8, and the types of GGUF that are formats of ours), and are floats
/// elsewhere; routers are floats.
struct QuantizedLoading {
  std::optional<ExpertFormat> format{};  ///< none: as the checkpoint has them, expert by expert
  ScaleSearch search = ScaleSearch::least_error;
  ProductKind product = ProductKind::integer;  ///< of routed experts, and of shared ones in codes
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

/// Writes expert e of a checkpoint to a bank: matrices that are stored in the bank's format code by
/// code, others quantised.
template <class Reader, class ActivationT>
void load_quantized_expert(const Reader& reader, Index e, const QuantizedLoading& loading,
                           QuantizedExperts<ActivationT>& bank, Index to) {
  const auto& layout = bank.layout_of(to);
  const StoredParts stored = reader.stored_parts(e);
  const bool gate_as_stored = stored.gate == layout.up.format;
  const bool up_as_stored = stored.up == layout.up.format;
  const bool down_as_stored = stored.down == layout.down.format;
  const bool has_biases = bank.has_biases();
  if (gate_as_stored && up_as_stored && down_as_stored) {
    bank.set_expert_codes(to, reader.codes(e));
    if (has_biases) bank.set_expert_biases(to, reader.biases(e).weights());
    return;
  }
  const ExpertMatrices<float> expert = reader.matrices(e);
  const ExpertMoments moments = moments_of(expert, bank.activation(), loading.calibration);
  if (!gate_as_stored && !up_as_stored && !down_as_stored)
    return bank.set_expert(to, expert.weights(), moments.options(loading.search));
  CodedExpertSource source = reader.codes(e);
  const auto quantize = [&](std::function<CodedOutput(Index)>& outputs, const Matrix<float>& matrix,
                            const MatrixLayout& to_layout, std::span<const float> importance) {
    outputs = moe::detail::quantized_outputs(to_layout, matrix, importance, loading.search);
  };
  if (!gate_as_stored) quantize(source.gate, expert.gate, layout.up, moments.up);
  if (!up_as_stored) quantize(source.up, expert.up, layout.up, moments.up);
  if (!down_as_stored) quantize(source.down, expert.down, layout.down, moments.down);
  bank.set_expert_codes(to, source);
  if (has_biases) bank.set_expert_biases(to, expert.weights());
}

/// The formats that the experts of a checkpoint get.
template <class Reader>
std::vector<ExpertFormat> formats_of(const Reader& reader, const QuantizedLoading& loading) {
  const Index experts = reader.sizes().num_experts;
  if (loading.format) return std::vector(static_cast<std::size_t>(experts), *loading.format);
  std::vector<ExpertFormat> formats;
  for (Index e = 0; e < experts; ++e) {
    const StoredParts stored = reader.stored_parts(e);
    const std::optional<ExpertFormat> format = stored.format();
    if (!format) reader.fail_stored(e, stored.part_without());
    formats.push_back(*format);
  }
  return formats;
}

template <class Reader>
AnyExperts<float> load_quantized_experts(const Reader& reader, const LayerConfig& config,
                                         const QuantizedLoading& loading) {
  const ExpertsConfig sizes = reader.sizes();
  const std::vector<ExpertFormat> formats = formats_of(reader, loading);
  return with_activation(config, reader.is_gated(), [&](auto activation) -> AnyExperts<float> {
    QuantizedExperts<decltype(activation)> bank(sizes, formats, activation);
    bank.set_product(loading.product);
    for (Index e = 0; e < sizes.num_experts; ++e)
      load_quantized_expert(reader, e, loading, bank, e);
    return bank;
  });
}

/// A block's shared experts with their codes as they are stored, or as floats where no format of
/// ours has these.
template <class Reader>
SharedExperts<AnyExperts<float>> load_stored_shared(const Reader& reader, const LayerConfig& config,
                                                    ProductKind product) {
  if (!reader.has_shared()) return {};
  const std::optional<ExpertFormat> format = reader.stored_shared().format();
  if (!format) return reader.shared();
  return SharedExperts<AnyExperts<float>>(
      with_activation(config, true,
                      [&](auto activation) -> AnyExperts<float> {
                        QuantizedExperts<decltype(activation)> bank(reader.shared_sizes(), *format,
                                                                    activation);
                        bank.set_product(product);
                        bank.set_expert_codes(0, reader.shared_codes());
                        return bank;
                      }),
      reader.shared_gate());
}

}  // namespace detail

/// As load_block, with experts that are quantised one by one; matrices that the checkpoint has in
/// the format that they are to have are taken over code by code.
///
/// Throws  as load_block; FormatError naming tensor and offset of a scale, weight or bias of a
///         routed expert, or of a shared one in codes, that is not finite; std::invalid_argument if
///         no format is named and the experts are floats, or a weight is beyond the format; what
///         expert_moments throws.
inline CheckpointLayer<float> load_quantized_block(const Tensors& tensors,
                                                   const LayerConfig& config,
                                                   const std::string& prefix,
                                                   const QuantizedLoading& loading = {}) {
  const detail::BlockReader<float> reader(tensors, config, prefix);
  CheckpointLayer<float> layer =
      reader.layer(detail::load_quantized_experts(reader, config, loading),
                   detail::load_stored_shared(reader, config, loading.product));
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
