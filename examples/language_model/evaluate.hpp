// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How well a model predicts a text, and how evenly it uses its experts on the way.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "language_model/model.hpp"

namespace language_model {

/// What the router of one layer did with the whole text.
struct LayerUse {
  Index layer = 0;                 ///< among all layers, from 0
  std::vector<Index> expert_load;  ///< choices that each expert got
  double max_violation = 0;        ///< largest load over the mean, minus 1
  double entropy = 0;              ///< of a token's router distribution, nats, mean over tokens
  double load_entropy = 0;         ///< of the loads, nats; ln E at balance
};

struct Evaluation {
  Index context = 0;
  Index windows = 0;
  Index predictions = 0;
  double nats_per_byte = 0;
  double bits_per_byte = 0;
  double perplexity = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  std::vector<double> window_nats;  ///< nats per byte of each window
  std::vector<LayerUse> layers;     ///< those that have experts
};

/// Called with the windows that are done and all of them.
using Progress = std::function<void(Index done, Index total)>;

/// Cuts the text into windows that do not overlap. A window feeds `context` bytes from position 0
/// on and predicts, after each of them, the byte that follows; the last window may be shorter. A
/// text of L bytes gives L - 1 predictions.
///
/// Values  the same bits for any number of threads, but for the times.
/// Throws  before any work: std::invalid_argument if the text is shorter than 2 bytes, the
///         vocabulary cannot hold it, or the context is not 1 to the model's positions.
template <class Scalar>
Evaluation evaluate(const Model<Scalar>& model, std::string_view text, Index context,
                    const Progress& progress = {});

extern template Evaluation evaluate(const Model<float>&, std::string_view, Index, const Progress&);
extern template Evaluation evaluate(const Model<double>&, std::string_view, Index, const Progress&);

}  // namespace language_model
