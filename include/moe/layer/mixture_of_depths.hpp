// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// MixtureOfDepths: which tokens pass through a block at all.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/losses/token_mask.hpp"
#include "moe/routing/linear_map.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a MixtureOfDepths.
struct DepthsConfig {
  Index d_model = 0;
  double capacity = 0.125;    ///< share of a sequence's tokens that pass, rounded, at least one
  Index sequence_tokens = 0;  ///< tokens of a sequence, 0 for all of a call
};

/// How tokens are chosen.
enum class DepthsChoice {
  top,        ///< the best of each sequence: training, and where later tokens are known
  threshold,  ///< those with sigmoid(r) above 1/2: decoding, if r was trained to predict the best
};

/// What a forward of MixtureOfDepths leaves for its backward.
///
/// Shapes  r, d_r (T); in, out (N, D), of the chosen tokens. d_r is zero after a forward: losses of
///         r add their gradients before the backward.
/// Values  layer is whose forward filled it, until a backward used it.
template <class Scalar>
struct DepthsTape {
  Vector<Scalar> r{};
  Vector<Scalar> d_r{};
  std::vector<Index> chosen{};
  Matrix<Scalar> in{};
  Matrix<Scalar> out{};
  const void* layer = nullptr;
};

/// For each token a number r = x . w. The tokens with the largest r of each sequence pass through a
/// block f, together and in their order: y = x + r f(x's); the others keep y = x.
///
/// The block is any callable `f(MatrixView<const Scalar> x, MatrixView<Scalar> y)` on (N, D), and
/// gives what the residual adds.
///
/// Ties    earlier token first; a NaN never wins.
/// Source  Raposo et al. (2024), arXiv:2404.02258.
template <class ScalarT>
class MixtureOfDepths {
 public:
  using Scalar = ScalarT;

  /// Shapes  weight (D).
  /// Throws  std::invalid_argument if the configuration makes no sense; ShapeError if the weight is
  ///         not D long.
  MixtureOfDepths(const DepthsConfig& config, Vector<Scalar> weight)
      : config_(config), map_(Matrix<Scalar>(weight.transpose())) {
    constexpr const char* where = "MixtureOfDepths";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.capacity > 0 && config_.capacity <= 1, where,
                  "capacity must be above 0 and at most 1");
    detail::check(config_.sequence_tokens >= 0, where, "sequence_tokens must not be negative");
    detail::check_size(where, "weight.size()", config_.d_model, weight.size());
  }

  Index d_model() const noexcept { return config_.d_model; }

  /// r of every token.
  ///
  /// Shapes  x (T, D); result (T).
  Vector<Scalar> scores(MatrixView<const Scalar> x) const {
    detail::check_size("MixtureOfDepths::scores", "x.cols()", d_model(), x.cols());
    Vector<Scalar> r(x.rows());
    map_.run(x, MatrixView<Scalar>(r.data(), x.rows(), 1));
    return r;
  }

  /// The tokens that pass, in order.
  ///
  /// Shapes  r (T).
  std::vector<Index> choose(const Vector<Scalar>& r,
                            DepthsChoice choice = DepthsChoice::top) const {
    std::vector<Index> chosen;
    if (choice == DepthsChoice::threshold) {
      for (Index t = 0; t < r.size(); ++t)
        if (r[t] > 0) chosen.push_back(t);
      return chosen;
    }
    const Index sequence = config_.sequence_tokens > 0 ? config_.sequence_tokens : r.size();
    for (Index begin = 0; begin < r.size(); begin += sequence) {
      const Index size = std::min(sequence, r.size() - begin);
      std::vector<Index> order(static_cast<std::size_t>(size));
      std::iota(order.begin(), order.end(), begin);
      std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
        return std::isnan(r[b]) ? !std::isnan(r[a]) : r[a] > r[b];
      });
      const double share = std::round(config_.capacity * static_cast<double>(size));
      order.resize(static_cast<std::size_t>(std::max(share, 1.0)));
      std::sort(order.begin(), order.end());
      chosen.insert(chosen.end(), order.begin(), order.end());
    }
    return chosen;
  }

  /// Runs the block on the chosen tokens, and gives their numbers.
  ///
  /// Shapes  x, y (T, D).
  /// Throws  ShapeError if x or y do not fit; std::invalid_argument if y overlaps x; whatever the
  ///         block throws.
  template <class Block>
  std::vector<Index> forward(MatrixView<const Scalar> x, MatrixView<Scalar> y, Block&& block,
                             DepthsChoice choice = DepthsChoice::top) const {
    const Vector<Scalar> r = scores(x);
    std::vector<Index> chosen = choose(r, choice);
    forward(x, y, r, chosen, block);
    return chosen;
  }

  /// The same on tokens that the caller chose, by a predictor of their own for example.
  ///
  /// Shapes  r (T), as of `scores`; chosen: numbers of tokens, rising.
  /// Throws  as above; std::invalid_argument if a chosen token is out of range or out of order.
  template <class Block>
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y, const Vector<Scalar>& r,
               const std::vector<Index>& chosen, Block&& block) const {
    constexpr const char* where = "MixtureOfDepths::forward";
    check_views(where, x, y);
    detail::check_size(where, "r.size()", x.rows(), r.size());
    for (std::size_t i = 0; i < chosen.size(); ++i)
      detail::check(chosen[i] >= 0 && chosen[i] < x.rows() && (i == 0 || chosen[i] > chosen[i - 1]),
                    where, "a chosen token is out of range or out of order");
    Matrix<Scalar> in;   // (N, D)
    Matrix<Scalar> out;  // (N, D)
    run(x, y, r, chosen, block, in, out);
  }

  /// Runs the block on the tokens that it chooses, and fills the tape for a `backward`.
  ///
  /// Shapes, Throws  as above.
  template <class Block>
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y, DepthsTape<Scalar>& tape,
               Block&& block, DepthsChoice choice = DepthsChoice::top) const {
    tape.layer = nullptr;
    check_views("MixtureOfDepths::forward", x, y);
    tape.r = scores(x);
    tape.chosen = choose(tape.r, choice);
    tape.d_r.setZero(x.rows());
    run(x, y, tape.r, tape.chosen, block, tape.in, tape.out);
    tape.layer = this;
  }

  /// The reverse of the forward that filled the tape. `block(in, d_out, d_in)` is the reverse of
  /// the block: from its input and the gradient with respect to its output to that with respect to
  /// its input, (N, D) each; it is not called where no token was chosen. Choices have no gradient.
  /// A tape serves once.
  ///
  /// Shapes  x as in the forward, dy, dx (T, D); d_weight (D), which is added to.
  /// Throws  ShapeError if a size disagrees; std::invalid_argument if no forward of this layer
  ///         filled the tape, or dx overlaps x or dy; whatever the block throws.
  template <class Block>
  void backward(MatrixView<const Scalar> x, DepthsTape<Scalar>& tape, MatrixView<const Scalar> dy,
                MatrixView<Scalar> dx, Vector<Scalar>& d_weight, Block&& block) const {
    constexpr const char* where = "MixtureOfDepths::backward";
    detail::check(tape.layer == this, where, "the tape is of another layer, or was used");
    const Index tokens = tape.r.size();
    detail::check_shape(where, "x.rows()", "x.cols()", x, tokens, d_model());
    detail::check_shape(where, "dy.rows()", "dy.cols()", dy, tokens, d_model());
    detail::check_shape(where, "dx.rows()", "dx.cols()", dx, tokens, d_model());
    detail::check_size(where, "tape.d_r.size()", tokens, tape.d_r.size());
    detail::check_size(where, "d_weight.size()", d_model(), d_weight.size());
    detail::check(!detail::overlap(x, dx) && !detail::overlap(dy, dx), where,
                  "dx overlaps x or dy");
    tape.layer = nullptr;
    const auto count = static_cast<Index>(tape.chosen.size());
    Matrix<Scalar> d_out(count, d_model());  // (N, D)
    Matrix<Scalar> d_in(count, d_model());   // (N, D)
    Vector<Scalar> d_r = tape.d_r;           // (T)
    for (Index i = 0; i < count; ++i) {
      const Index t = tape.chosen[static_cast<std::size_t>(i)];
      d_out.row(i) = tape.r[t] * dy.map().row(t);
      d_r[t] += dy.map().row(t).dot(tape.out.row(i));
    }
    if (count > 0)
      block(MatrixView<const Scalar>(tape.in), MatrixView<const Scalar>(d_out),
            MatrixView<Scalar>(d_in));
    const Vector<Scalar> weight = map_.weight().row(0).transpose();
    for (Index t = 0; t < tokens; ++t) {
      dx.map().row(t) = dy.map().row(t) + d_r[t] * weight.transpose();
      d_weight += d_r[t] * x.map().row(t).transpose();
    }
    for (Index i = 0; i < count; ++i)
      dx.map().row(tape.chosen[static_cast<std::size_t>(i)]) += d_in.row(i);
  }

  /// The loss that teaches r to tell which tokens are among the best without later ones: binary
  /// cross-entropy of sigmoid(r) against having been chosen, mean over the tokens that count.
  ///
  /// Shapes  d_r (T), to which `coefficient` times the gradient is added, or null.
  /// Values  ln 2 for r of 0; 0 where no token counts.
  /// Throws  ShapeError if the mask or d_r is not T long; std::invalid_argument if a chosen token
  ///         is out of range or the coefficient is not finite.
  static double choice_loss(const Vector<Scalar>& r, const std::vector<Index>& chosen,
                            losses::TokenMask mask = {}, Vector<Scalar>* d_r = nullptr,
                            double coefficient = 1) {
    constexpr const char* where = "MixtureOfDepths::choice_loss";
    if (d_r != nullptr) {
      detail::check_size(where, "d_r.size()", r.size(), d_r->size());
      losses::detail::check_coefficient(where, coefficient);
    }
    const Index counted = losses::detail::count_tokens(where, mask, r.size());
    double loss = 0;
    std::vector<bool> is_chosen(static_cast<std::size_t>(r.size()), false);
    for (const Index t : chosen) {
      detail::check(t >= 0 && t < r.size(), where, "a chosen token is out of range");
      is_chosen[static_cast<std::size_t>(t)] = true;
    }
    for (Index t = 0; t < r.size(); ++t) {
      if (!losses::detail::counts(mask, t)) continue;
      const auto z = static_cast<double>(r[t]);
      const double target = is_chosen[static_cast<std::size_t>(t)] ? 1 : 0;
      loss += softplus(target > 0 ? -z : z);
      if (d_r != nullptr)
        (*d_r)[t] +=
            static_cast<Scalar>(coefficient * (sigmoid(z) - target) / static_cast<double>(counted));
    }
    return counted > 0 ? loss / static_cast<double>(counted) : 0;
  }

 private:
  void check_views(const char* where, MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_size(where, "y.rows()", x.rows(), y.rows());
    detail::check_size(where, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), where, "y overlaps x");
  }

  template <class Block>
  void run(MatrixView<const Scalar> x, MatrixView<Scalar> y, const Vector<Scalar>& r,
           const std::vector<Index>& chosen, Block&& block, Matrix<Scalar>& in,
           Matrix<Scalar>& out) const {
    in.resize(static_cast<Index>(chosen.size()), d_model());
    out.resize(static_cast<Index>(chosen.size()), d_model());
    for (std::size_t i = 0; i < chosen.size(); ++i)
      std::copy_n(x.row(chosen[i]), d_model(), in.row(static_cast<Index>(i)).data());
    if (!chosen.empty()) block(MatrixView<const Scalar>(in), MatrixView<Scalar>(out));
    y.map() = x.map();
    for (std::size_t i = 0; i < chosen.size(); ++i)
      y.map().row(chosen[i]) += r[chosen[i]] * out.row(static_cast<Index>(i));
  }

  DepthsConfig config_;
  detail::LinearMap<Scalar> map_;  // (1, D)
};

}  // namespace moe::inline MOE_ABI
