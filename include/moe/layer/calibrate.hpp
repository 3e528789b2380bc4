// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the errors of an expert's weights count: the second moments of what they are multiplied
// with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/quantize.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_map.hpp"

namespace moe::inline MOE_ABI {

/// Means of squares of an expert's inputs and of its hidden values.
struct ExpertMoments {
  std::vector<float> up;    ///< (D)
  std::vector<float> down;  ///< (F)

  /// For QuantizedExperts::set_expert, valid as long as the moments are. ScaleSearch::nearest takes
  /// no account of them.
  QuantizeOptions options(ScaleSearch search = ScaleSearch::least_error) const& {
    return {.search = search, .up_importance = up, .down_importance = down};
  }
  QuantizeOptions options(ScaleSearch search = ScaleSearch::least_error) const&& = delete;
};

namespace detail {

/// Divides sums by the number of tokens. What calibration never met may still occur: nothing counts
/// less than a hundredth of the mean, and where all is zero, all counts the same.
inline std::vector<float> means_of(const char* where, const std::vector<double>& sums,
                                   Index tokens) {
  double total = 0;
  for (const double sum : sums) total += sum;
  check(total < std::numeric_limits<float>::max(), where,
        "an input or a hidden value is not finite, or too large to be squared");
  if (total == 0) return std::vector<float>(sums.size(), 1.0F);
  const double mean = total / static_cast<double>(sums.size());
  std::vector<float> result(sums.size());
  std::transform(sums.begin(), sums.end(), result.begin(), [&](double sum) {
    return static_cast<float>(std::max(sum, mean / 100) / static_cast<double>(tokens));
  });
  return result;
}

}  // namespace detail

/// The moments of an expert over tokens all of which it sees, whether a router would choose it or
/// not: those of an expert that is rarely chosen are as good as the others'.
///
/// Shapes  x (T, D).
/// Values  the same for any number of threads.
/// Throws  ShapeError if x, the gate or a bias does not fit; std::invalid_argument if there are no
///         tokens, or squares of inputs or hidden values do not add up to a number.
/// Cost    2 T D F flop for each of gate and up; memory for copies of both and for what 256 tokens
///         have between up and down.
/// Source  errors weighed by activations: Lin et al. (2023), arXiv:2306.00978.
template <Activation<float> ActivationT>
ExpertMoments expert_moments(const ExpertMatrices<float>& expert, const ActivationT& activation,
                             MatrixView<const float> x) {
  constexpr const char* where = "expert_moments";
  constexpr bool gated = GatedActivation<ActivationT, float>;
  constexpr Index block = 256;
  const Index d_ff = expert.up.rows();
  detail::check(x.rows() > 0, where, "there are no tokens");
  detail::check_size(where, "x.cols()", expert.up.cols(), x.cols());
  if constexpr (gated) {
    detail::check_size(where, "gate.rows()", d_ff, expert.gate.rows());
    detail::check_size(where, "gate.cols()", expert.up.cols(), expert.gate.cols());
    if (expert.gate_bias.size() > 0)
      detail::check_size(where, "gate_bias.size()", d_ff, expert.gate_bias.size());
  }
  if (expert.up_bias.size() > 0)
    detail::check_size(where, "up_bias.size()", d_ff, expert.up_bias.size());
  const detail::LinearMap<float> up(expert.up);
  const detail::LinearMap<float> gate =
      gated ? detail::LinearMap<float>(expert.gate) : detail::LinearMap<float>();
  Matrix<float> up_values(std::min(block, x.rows()), d_ff);
  Matrix<float> gate_values(gated ? up_values.rows() : 0, d_ff);
  const auto bias = [](const Matrix<float>& biases, Index f) {
    return biases.size() == 0 ? 0.0F : biases.data()[f];
  };
  std::vector<double> inputs(static_cast<std::size_t>(x.cols()));
  std::vector<double> hidden(static_cast<std::size_t>(d_ff));
  for (Index begin = 0; begin < x.rows(); begin += block) {
    const MatrixView<const float> rows = x.middle_rows(begin, std::min(block, x.rows() - begin));
    for (Index t = 0; t < rows.rows(); ++t)
      for (Index d = 0; d < rows.cols(); ++d)
        inputs[static_cast<std::size_t>(d)] += std::pow(static_cast<double>(rows(t, d)), 2);
    up.run(rows, MatrixView<float>(up_values).middle_rows(0, rows.rows()));
    if constexpr (gated) gate.run(rows, MatrixView<float>(gate_values).middle_rows(0, rows.rows()));
    parallel::for_each_block(d_ff, 64, [&](Index first, Index end) {
      for (Index t = 0; t < rows.rows(); ++t) {
        for (Index f = first; f < end; ++f) {
          const float above = up_values(t, f) + bias(expert.up_bias, f);
          float value = 0;
          if constexpr (gated)
            value = activation(gate_values(t, f) + bias(expert.gate_bias, f), above);
          else
            value = activation(above);
          hidden[static_cast<std::size_t>(f)] += std::pow(static_cast<double>(value), 2);
        }
      }
    });
  }
  return {detail::means_of(where, inputs, x.rows()), detail::means_of(where, hidden, x.rows())};
}

}  // namespace moe::inline MOE_ABI
