// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Continuing a prompt.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "language_model/model.hpp"
#include "language_model/sampler.hpp"

namespace language_model {

struct GenerateOptions {
  std::string prompt = "\n";
  Index tokens = 200;
  Index context = 0;  ///< positions that the model sees at most; 0 stands for all of them
  SamplerOptions sampler = {};
};

/// How long the two phases took: reading the prompt at once, and writing token by token.
struct GenerateTimes {
  Index prefill_tokens = 0;
  double prefill_seconds = 0;
  Index decode_tokens = 0;  ///< one less than were written: the prompt gives the first
  double decode_seconds = 0;
};

/// Hands the prompt, and then each byte as soon as it is chosen, to `write`. A model with more
/// tokens than there are bytes is asked for its first 256 only. With a context, the text may grow
/// without end: whenever the context is full, the model reads the later half of it afresh.
///
/// Throws  before anything is written: std::invalid_argument if an option makes no sense, the
///         vocabulary cannot hold the prompt, or prompt and continuation together are longer than
///         the model's positions and there is no context.
template <class Scalar>
GenerateTimes generate(const Model<Scalar>& model, const GenerateOptions& options,
                       const std::function<void(std::string_view)>& write);

extern template GenerateTimes generate(const Model<float>&, const GenerateOptions&,
                                       const std::function<void(std::string_view)>&);
extern template GenerateTimes generate(const Model<double>&, const GenerateOptions&,
                                       const std::function<void(std::string_view)>&);

}  // namespace language_model
