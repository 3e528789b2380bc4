// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AdamW, with the gradient clipped by its norm.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/training/parameter.hpp"

namespace language_model::training {

/// Source  Loshchilov and Hutter (2019), arXiv:1711.05101, as torch has it.
template <class Scalar>
class AdamW {
 public:
  struct Moments {
    std::vector<Scalar> first;
    std::vector<Scalar> second;
  };

  explicit AdamW(const Parameters<Scalar>& parameters) {
    for (const Parameter<Scalar>& parameter : parameters)
      moments_.push_back({std::vector<Scalar>(parameter.values.size()),
                          std::vector<Scalar>(parameter.values.size())});
  }

  /// In the order of the parameters.
  std::vector<Moments>& moments() noexcept { return moments_; }
  const std::vector<Moments>& moments() const noexcept { return moments_; }

  /// Step `step`, from 1 on. Gives the norm of the gradient before it was clipped.
  ///
  /// Values  the same bits for any number of threads. Nothing changes if the norm is not finite.
  double step(const Parameters<Scalar>& parameters, moe::Index step, double rate, double decay,
              double clip) {
    const double norm = norm_of(parameters);
    if (!std::isfinite(norm)) return norm;
    const auto t = static_cast<double>(step);
    const auto shrink = static_cast<Scalar>(clip > 0 && norm > clip ? clip / norm : 1);
    const auto of_first = static_cast<Scalar>(1 / (1 - std::pow(beta1, t)));
    const auto of_second = static_cast<Scalar>(1 / (1 - std::pow(beta2, t)));
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Parameter<Scalar>& parameter = parameters[i];
      const auto kept = static_cast<Scalar>(parameter.decays ? 1 - rate * decay : 1);
      for_each_chunk(parameter.values.size(), [&](std::size_t begin, std::size_t size) {
        Map value(parameter.values.data() + begin, static_cast<moe::Index>(size));
        const Map g(parameter.gradient.data() + begin, static_cast<moe::Index>(size));
        Map m(moments_[i].first.data() + begin, static_cast<moe::Index>(size));
        Map v(moments_[i].second.data() + begin, static_cast<moe::Index>(size));
        m = Scalar(beta1) * m + Scalar(1 - beta1) * shrink * g;
        v = Scalar(beta2) * v + Scalar(1 - beta2) * (shrink * g).square();
        // Eigen's square root begins with an approximation that differs between processors.
        const auto root = (of_second * v).unaryExpr([](Scalar x) { return std::sqrt(x); });
        value = kept * value - static_cast<Scalar>(rate) * of_first * m / (root + Scalar(1e-8));
      });
    }
    return norm;
  }

 private:
  static constexpr double beta1 = 0.9;
  static constexpr double beta2 = 0.95;
  static constexpr std::size_t chunk = 16384;
  using Map = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>>;

  template <class Body>
  static void for_each_chunk(std::size_t size, const Body& body) {
    moe::parallel::for_each_task(static_cast<moe::Index>((size + chunk - 1) / chunk),
                                 [&](moe::Index task, int /*thread*/) {
                                   const std::size_t begin = static_cast<std::size_t>(task) * chunk;
                                   body(begin, std::min(chunk, size - begin));
                                 });
  }

  /// By chunks, each summed by one thread, and these in order.
  double norm_of(const Parameters<Scalar>& parameters) {
    double total = 0;
    for (const Parameter<Scalar>& parameter : parameters) {
      partial_.assign(parameter.gradient.size() / chunk + 1, 0);
      for_each_chunk(parameter.gradient.size(), [&](std::size_t begin, std::size_t size) {
        const Map g(parameter.gradient.data() + begin, static_cast<moe::Index>(size));
        partial_[begin / chunk] = g.template cast<double>().square().sum();
      });
      for (const double sum : partial_) total += sum;
    }
    return std::sqrt(total);
  }

  std::vector<Moments> moments_;
  std::vector<double> partial_;
};

}  // namespace language_model::training
