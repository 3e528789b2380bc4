// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Noise of routers in training: drawn from a seed, each value by its position, or supplied.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/random.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI {

/// Distributions that routers draw from.
enum class Noise {
  uniform,  ///< 0 to 1, without both
  normal,   ///< mean 0, deviation 1
  gumbel,   ///< -log(-log(u)): argmax(z + gumbel) is a draw from softmax(z)
};

namespace detail {

/// Streams of one seed, so that what one part draws does not depend on another's sizes.
enum class NoiseStream : std::uint64_t {
  jitter = 1,
  logits,
  choice,
  multiplier,
  capacity,
  dropout,
  shared_dropout
};

inline std::uint64_t stream_seed(std::uint64_t seed, NoiseStream stream) noexcept {
  return mix_bits(seed ^ (static_cast<std::uint64_t>(stream) * 0x9e3779b97f4a7c15U));
}

/// The `position`-th value of a stream.
inline double draw(Noise noise, std::uint64_t seed, std::uint64_t position) noexcept {
  // Uniform is a multiple of 2^-53; half a step keeps it off 0.
  const double u = uniform(seed, 2 * position) + 0x1p-54;
  if (noise == Noise::uniform) return u;
  if (noise == Noise::gumbel) return -std::log(-std::log(u));
  const double angle = 6.283185307179586476925286766559 * uniform(seed, 2 * position + 1);
  return std::sqrt(-2 * std::log(u)) * std::cos(angle);
}

/// A row of noise: the supplied one, or drawn. Empty `supplied` means none.
///
/// Shapes  supplied (T, n) or empty; out (n).
template <class Scalar>
void noise_row(MatrixView<const Scalar> supplied, Noise noise, std::uint64_t seed, Index token,
               Index n, Scalar* out) {
  if (!supplied.empty()) {
    std::copy_n(supplied.row(token), n, out);
    return;
  }
  for (Index i = 0; i < n; ++i)
    out[i] = static_cast<Scalar>(draw(noise, seed, static_cast<std::uint64_t>(token * n + i)));
}

/// Throws ShapeError unless `supplied` is empty or (rows, cols).
template <class Scalar>
void check_noise(const char* where, const char* rows_name, const char* cols_name,
                 MatrixView<const Scalar> supplied, Index rows, Index cols) {
  if (supplied.rows() == 0 && supplied.cols() == 0) return;
  check_size(where, rows_name, rows, supplied.rows());
  check_size(where, cols_name, cols, supplied.cols());
}

}  // namespace detail

/// Fills `out` with values of a distribution. The same generator state gives the same values on
/// every platform.
template <BitGenerator Generator, class Scalar>
void fill_noise(Noise noise, Generator& generator, MatrixView<Scalar> out) {
  const std::uint64_t seed = detail::draw_seed(generator);
  for (Index r = 0; r < out.rows(); ++r)
    detail::noise_row<Scalar>({}, noise, seed, r, out.cols(), out.row(r));
}

/// What a noisy router drew, for `losses::smooth_load`.
///
/// Shapes  noisy_logits, deviation (T, E); empty outside of training.
template <class Scalar>
struct NoisyLogits {
  Matrix<Scalar> noisy_logits;
  Matrix<Scalar> deviation;
};

/// y = x times uniform factors from 1 - epsilon to 1 + epsilon: 1 - epsilon + 2 epsilon u.
///
/// Shapes  x, y (T, D); u (T, D) in 0 .. 1, or empty to draw it from `seed`; y may be x.
/// Source  Fedus et al. (2021), section 2.4, arXiv:2101.03961.
/// Throws  ShapeError if sizes disagree; std::invalid_argument unless 0 <= epsilon < 1.
template <class Scalar>
void jitter(std::type_identity_t<MatrixView<const Scalar>> x, double epsilon, std::uint64_t seed,
            MatrixView<Scalar> y, std::type_identity_t<MatrixView<const Scalar>> u = {}) {
  detail::check(epsilon >= 0 && epsilon < 1, "jitter", "epsilon must be at least 0 and below 1");
  detail::check_size("jitter", "y.rows()", x.rows(), y.rows());
  detail::check_size("jitter", "y.cols()", x.cols(), y.cols());
  detail::check_noise("jitter", "u.rows()", "u.cols()", u, x.rows(), x.cols());
  const std::uint64_t stream = detail::stream_seed(seed, detail::NoiseStream::jitter);
  Vector<Scalar> factor(x.cols());  // (D)
  for (Index t = 0; t < x.rows(); ++t) {
    detail::noise_row(u, Noise::uniform, stream, t, x.cols(), factor.data());
    for (Index d = 0; d < x.cols(); ++d)
      y(t, d) = x(t, d) * static_cast<Scalar>(1 - epsilon + 2 * epsilon * factor[d]);
  }
}

}  // namespace moe::inline MOE_ABI
