// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See quantized.hpp.
#include "language_model/quantized.hpp"

#include <algorithm>
#include <map>
#include <span>
#include <stdexcept>
#include <vector>

#include <moe/io/packed_loader.hpp>
#include <moe/io/quantized_loader.hpp>

#include "language_model/bytes.hpp"

namespace language_model {
namespace {

/// What the MoE blocks of a model get when it reads the beginning of a text, (T, D) by layer.
std::map<Index, Matrix<float>> block_inputs(const Model<float>& model, const std::string& path) {
  constexpr Index most_tokens = 4096;
  constexpr Index window = 128;
  const std::vector<Token> tokens = to_tokens(read_file(path), model.config().vocab_size, "text");
  if (tokens.empty()) throw std::invalid_argument(path + ": there is no text to calibrate with");
  const auto size = static_cast<Index>(tokens.size());
  const Index context = std::min({window, model.config().max_positions, size});
  const Index windows = std::min(size, most_tokens) / context;
  std::map<Index, Matrix<float>> inputs;
  Session<float> session(model.config(), windows, context);
  model.forward(std::span(tokens).first(static_cast<std::size_t>(windows * context)), session,
                [&](Index layer, MatrixView<const float> x,
                    const moe::Routing<float>& /*routing*/) { inputs[layer] = x.map(); });
  return inputs;
}

}  // namespace

Model<float> quantized_model(const moe::io::Checkpoint& checkpoint,
                             const QuantizedOptions& options) {
  const moe::ProductKind product =
      options.weight_only ? moe::ProductKind::widened : moe::ProductKind::integer;
  if (!options.packed.empty()) {
    const moe::io::PackedFile packed(options.packed);
    return Model<float>(checkpoint, [&](const moe::io::Checkpoint& from, Index layer) {
      return moe::io::packed_layer(from, layer, packed, product);
    });
  }
  moe::io::QuantizedLoading loading{
      .format = moe::expert_format_of(options.weights),
      .search = options.no_search ? moe::ScaleSearch::nearest : moe::ScaleSearch::least_error,
      .product = product};
  std::map<Index, Matrix<float>> inputs;
  if (!options.calibrate.empty())
    inputs = block_inputs(Model<float>(checkpoint), options.calibrate);
  return Model<float>(checkpoint, [&](const moe::io::Checkpoint& from, Index layer) {
    loading.calibration = inputs[layer];
    return moe::io::quantized_layer(from, layer, loading);
  });
}

}  // namespace language_model
