// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Choosing the next token.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include <moe/core/types.hpp>

#include "language_model/model.hpp"

namespace language_model {

struct SamplerOptions {
  double temperature = 0.8;  ///< 0 takes the most probable token
  double top_p = 0.95;       ///< 1 leaves all tokens in play
  std::uint64_t seed = 1;
};

/// Draws tokens from softmax(logits / temperature), restricted to the nucleus: the fewest most
/// probable tokens whose probabilities sum to top_p or more.
///
/// Values  the same tokens from the same seed and the same logits, with every compiler.
/// Ties    lower token first.
/// Source  Holtzman et al. (2019), sec. 3.1, arXiv:1904.09751.
class Sampler {
 public:
  /// Throws  std::invalid_argument unless temperature is 0 or more and finite, and top_p is above 0
  ///         and at most 1.
  explicit Sampler(const SamplerOptions& options);

  /// Shapes  logits (vocab_size).
  /// Throws  std::runtime_error if a logit is NaN or the largest is infinite.
  Token operator()(const moe::Vector<double>& logits);

 private:
  SamplerOptions options_;
  std::mt19937_64 generator_;
  std::vector<Token> order_;         // tokens, most probable first
  std::vector<double> probability_;  // by token, not normalised
};

}  // namespace language_model
