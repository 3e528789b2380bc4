// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See sampler.hpp.
#include "language_model/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>

namespace language_model {

Sampler::Sampler(const SamplerOptions& options) : options_(options), generator_(options.seed) {
  if (!(options_.temperature >= 0 && std::isfinite(options_.temperature)))
    throw std::invalid_argument("the temperature must be 0 or more");
  if (!(options_.top_p > 0 && options_.top_p <= 1))
    throw std::invalid_argument("top-p must be above 0 and at most 1");
}

Token Sampler::operator()(const moe::Vector<double>& logits) {
  Index best = 0;  // maxCoeff leaves open which of equal logits it names.
  for (Index i = 0; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
    if (std::isnan(logits[i])) throw std::runtime_error("the model gave a logit that is NaN");
  }
  const double largest = logits[best];
  if (!std::isfinite(largest)) throw std::runtime_error("the model gave an infinite logit");
  if (options_.temperature == 0) return static_cast<Token>(best);

  const auto size = static_cast<std::size_t>(logits.size());
  probability_.resize(size);
  for (std::size_t i = 0; i < size; ++i)
    probability_[i] = std::exp((logits[static_cast<Index>(i)] - largest) / options_.temperature);
  order_.resize(size);
  std::iota(order_.begin(), order_.end(), 0);
  const auto probability = [&](Token token) {
    return probability_[static_cast<std::size_t>(token)];
  };
  std::stable_sort(order_.begin(), order_.end(),
                   [&](Token a, Token b) { return probability(a) > probability(b); });

  const double total = std::accumulate(probability_.begin(), probability_.end(), 0.0);
  double nucleus = 0;
  std::size_t kept = 0;
  while (kept < size && (kept == 0 || nucleus < options_.top_p * total))
    nucleus += probability(order_[kept++]);

  // The standard's own distributions differ between libraries; its generators do not.
  const double uniform = static_cast<double>(generator_() >> 11) * 0x1p-53;
  double left = uniform * nucleus;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= probability(order_[i]);
    if (left < 0) return order_[i];
  }
  return order_[kept - 1];
}

}  // namespace language_model
