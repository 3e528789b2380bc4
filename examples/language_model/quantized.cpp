// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See quantized.hpp.
#include "language_model/quantized.hpp"

#include <moe/io/quantized_loader.hpp>

namespace language_model {

MixtureLoader<float> quantized_mixtures(const QuantizedOptions& options) {
  const std::string up = options.weights.substr(0, options.weights.find(','));
  const std::string down =
      up.size() < options.weights.size() ? options.weights.substr(up.size() + 1) : up;
  const moe::io::QuantizedLoading loading{
      .format = moe::ExpertFormat{moe::format_of(up), moe::format_of(down)},
      .search = options.no_search ? moe::ScaleSearch::nearest : moe::ScaleSearch::least_error,
      .product = options.weight_only ? moe::ProductKind::widened : moe::ProductKind::integer};
  return [loading](const moe::io::Checkpoint& checkpoint, Index layer) {
    return moe::io::quantized_layer(checkpoint, layer, loading);
  };
}

}  // namespace language_model
