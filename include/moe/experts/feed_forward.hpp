// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// FeedForwardExperts: banks of two- and three-matrix feed-forward experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/product.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/gather.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// Whether the routing weight multiplies the bias of the down projection, as it does where the bias
/// is part of the expert, or the bias is added beside it.
enum class DownBias { weighted, unweighted };

/// Sizes of a bank of E equal experts.
struct ExpertsConfig {
  Index num_experts = 0;
  Index d_model = 0;
  Index d_ff = 0;
  bool biases = false;
  DownBias down_bias = DownBias::weighted;
};

/// E experts, each down(activation(gate(x), up(x))) with a gated activation and
/// down(activation(up(x))) with a plain one.
///
/// Values  a row's result has the same bits whatever the other rows and the number of threads.
template <class ScalarT, Activation<ScalarT> ActivationT>
class FeedForwardExperts {
 public:
  using Scalar = ScalarT;
  static constexpr bool is_gated = GatedActivation<ActivationT, Scalar>;

  /// A bank of zeros, to be filled by `set_expert`.
  ///
  /// Throws  std::invalid_argument if a size is not positive or the weights exceed all memory.
  explicit FeedForwardExperts(const ExpertsConfig& config, ActivationT activation = {})
      : config_(config), activation_(std::move(activation)) {
    constexpr const char* where = "FeedForwardExperts";
    detail::check(config_.num_experts > 0, where, "num_experts must be positive");
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.d_ff > 0, where, "d_ff must be positive");
    const Index hidden = detail::product(where, config_.num_experts, config_.d_ff);
    detail::product(where, hidden, detail::product(where, config_.d_model, sizeof(Scalar)));
    detail::product(where, config_.num_experts, config_.d_model);
    if constexpr (is_gated) gate_.setZero(hidden, config_.d_model);
    up_.setZero(hidden, config_.d_model);
    down_.setZero(config_.num_experts * config_.d_model, config_.d_ff);
    if (config_.biases) {
      if constexpr (is_gated) gate_bias_.setZero(config_.num_experts, config_.d_ff);
      up_bias_.setZero(config_.num_experts, config_.d_ff);
      down_bias_.setZero(config_.num_experts, config_.d_model);
    }
  }

  /// Experts that keep the scale of a unit-variance input; biases start at zero.
  template <std::uniform_random_bit_generator Generator>
  static FeedForwardExperts random(const ExpertsConfig& config, Generator& generator) {
    FeedForwardExperts bank(config);
    const std::uint64_t seed = detail::draw_seed(generator);
    parallel::for_each_task(config.num_experts, [&](Index e, int /*thread*/) {
      const auto fill = [&](Scalar* values, Index fan_in, std::uint64_t role) {
        detail::fill_uniform(values, config.d_ff * config.d_model, fan_in,
                             detail::mix_bits(seed + 3 * static_cast<std::uint64_t>(e) + role));
      };
      if constexpr (is_gated) fill(bank.gate_of(e), config.d_model, 0);
      fill(bank.up_of(e), config.d_model, 1);
      fill(bank.down_of(e), config.d_ff, 2);
    });
    return bank;
  }

  Index num_experts() const noexcept { return config_.num_experts; }
  Index d_model() const noexcept { return config_.d_model; }
  Index d_ff() const noexcept { return config_.d_ff; }
  bool has_biases() const noexcept { return config_.biases; }
  const ActivationT& activation() const noexcept { return activation_; }

  /// Copies one expert into the bank; the views need not outlive the call.
  ///
  /// Throws  std::invalid_argument if `expert` is out of range; ShapeError if a matrix has not the
  ///         bank's sizes, one that the bank needs is empty, or one that it lacks is not.
  void set_expert(Index expert, const ExpertWeights<Scalar>& weights) {
    constexpr const char* where = "FeedForwardExperts::set_expert";
    detail::check(expert >= 0 && expert < num_experts(), where, "expert is out of range");
    const Index biases = config_.biases ? 1 : 0;
    const Index gated = is_gated ? 1 : 0;
    check_shape("gate", weights.gate, d_ff() * gated, d_model() * gated);
    check_shape("up", weights.up, d_ff(), d_model());
    check_shape("down", weights.down, d_model(), d_ff());
    check_shape("gate_bias", weights.gate_bias, d_ff() * biases * gated, biases * gated);
    check_shape("up_bias", weights.up_bias, d_ff() * biases, biases);
    check_shape("down_bias", weights.down_bias, d_model() * biases, biases);
    if constexpr (is_gated) gate_.middleRows(expert * d_ff(), d_ff()) = weights.gate.map();
    up_.middleRows(expert * d_ff(), d_ff()) = weights.up.map();
    down_.middleRows(expert * d_model(), d_model()) = weights.down.map();
    if (config_.biases) {
      if constexpr (is_gated) gate_bias_.row(expert) = weights.gate_bias.map().transpose();
      up_bias_.row(expert) = weights.up_bias.map().transpose();
      down_bias_.row(expert) = weights.down_bias.map().transpose();
    }
  }

  /// The same from any of the layouts that checkpoints have.
  ///
  /// Throws  as above; ShapeError if the source's matrices do not fit each other.
  void set_expert_from(Index expert, const ExpertSource<Scalar>& source) {
    const ExpertMatrices<Scalar> matrices = separate(source);
    set_expert(expert, matrices.weights());
  }

  /// One expert's matrices where they lie.
  ExpertWeights<Scalar> expert(Index e) const {
    detail::check(e >= 0 && e < num_experts(), "FeedForwardExperts::expert",
                  "expert is out of range");
    ExpertWeights<Scalar> weights;
    if constexpr (is_gated) weights.gate = {gate_of(e), d_ff(), d_model()};
    weights.up = {up_of(e), d_ff(), d_model()};
    weights.down = {down_of(e), d_model(), d_ff()};
    if (config_.biases) {
      if constexpr (is_gated) weights.gate_bias = {gate_bias_.row(e).data(), d_ff(), 1};
      weights.up_bias = {up_bias_.row(e).data(), d_ff(), 1};
      weights.down_bias = {down_bias_.row(e).data(), d_model(), 1};
    }
    return weights;
  }

  /// Runs every expert on its rows of the plan, in tiles of at most 32 rows.
  ///
  /// Shapes  input.x (T, D), rows (N, D).
  /// Cost    6 N D F flop with a gate, 4 N D F without; parallel over tiles.
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const {
    detail::check_bank_call("FeedForwardExperts::forward", input, rows, num_experts(), d_model());
    std::vector<Tile> tiles;
    for (Index e = 0; e < num_experts(); ++e) {
      const Index end = input.plan.first_row(e + 1);
      for (Index first = input.plan.first_row(e); first < end; first += detail::tile_rows)
        tiles.push_back({e, first, std::min(detail::tile_rows, end - first)});
    }
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const Tile& a, const Tile& b) { return a.count > b.count; });
    const Index scratch_values = detail::tile_rows * (2 * d_model() + 2 * d_ff());
    scratch.reserve(parallel::available_threads(),
                    static_cast<std::size_t>(scratch_values) * sizeof(Scalar));
    parallel::for_each_task(static_cast<Index>(tiles.size()), [&](Index task, int thread) {
      forward_tile(input, tiles[static_cast<std::size_t>(task)], rows,
                   scratch.of_thread<Scalar>(thread));
    });
  }

  /// Adds to y what the routing weights must not multiply: the down biases of the experts that ran,
  /// where the configuration says `unweighted`.
  ///
  /// Shapes  y (T, D).
  void add_unweighted(const Routing<Scalar>& routing, const DispatchPlan& plan,
                      MatrixView<Scalar> y) const {
    if (!config_.biases || config_.down_bias == DownBias::weighted) return;
    for (Index t = 0; t < plan.tokens; ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        if (plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)] == DispatchPlan::no_row)
          continue;
        const Index expert = routing.experts(t, k) - plan.first_expert;
        if (expert >= num_experts()) continue;  // Of another bank beside this one.
        const Scalar* const bias = down_bias_.row(expert).data();
        for (Index d = 0; d < d_model(); ++d) y(t, d) += bias[d];
      }
    }
  }

 private:
  struct Tile {
    Index expert;
    Index first;  // row of the plan
    Index count;
  };

  static void check_shape(const char* name, MatrixView<const Scalar> matrix, Index rows,
                          Index cols) {
    if (matrix.rows() != rows || matrix.cols() != cols) [[unlikely]]
      throw ShapeError(detail::text_of("FeedForwardExperts::set_expert: ", name, ": expected (",
                                       rows, ", ", cols, "), got (", matrix.rows(), ", ",
                                       matrix.cols(), ")"));
  }

  const Scalar* gate_of(Index e) const noexcept { return gate_.data() + e * d_ff() * d_model(); }
  const Scalar* up_of(Index e) const noexcept { return up_.data() + e * d_ff() * d_model(); }
  const Scalar* down_of(Index e) const noexcept { return down_.data() + e * d_ff() * d_model(); }
  Scalar* gate_of(Index e) noexcept { return gate_.data() + e * d_ff() * d_model(); }
  Scalar* up_of(Index e) noexcept { return up_.data() + e * d_ff() * d_model(); }
  Scalar* down_of(Index e) noexcept { return down_.data() + e * d_ff() * d_model(); }

  /// y (rows, outputs) = x (rows, inner) w^T + bias, which is row `expert` of `biases`.
  void linear(const Scalar* x, Index rows, Index inner, const Scalar* w,
              const Matrix<Scalar>& biases, Index expert, Index outputs, Scalar* y) const {
    detail::tile_product(x, rows, inner, w, outputs, y);
    if (biases.size() == 0) return;
    const Scalar* const bias = biases.row(expert).data();
    for (Index r = 0; r < rows; ++r)
      for (Index o = 0; o < outputs; ++o) y[r * outputs + o] += bias[o];
  }

  void forward_tile(const ExpertInput<Scalar>& input, const Tile& tile, MatrixView<Scalar> rows,
                    Scalar* scratch) const {
    const Index padded = detail::padded_rows(tile.count, d_model(), d_ff());
    Scalar* const x = scratch;                                 // (padded, D)
    Scalar* const y = x + detail::tile_rows * d_model();       // (padded, D)
    Scalar* const hidden = y + detail::tile_rows * d_model();  // (padded, F)
    Scalar* const gate = hidden + detail::tile_rows * d_ff();  // (padded, F)
    detail::gather_rows(input, tile.first, MatrixView<Scalar>(x, tile.count, d_model()));
    std::fill(x + tile.count * d_model(), x + padded * d_model(), Scalar(0));

    const Index e = tile.expert;
    linear(x, padded, d_model(), up_of(e), up_bias_, e, d_ff(), hidden);
    if constexpr (is_gated) {
      linear(x, padded, d_model(), gate_of(e), gate_bias_, e, d_ff(), gate);
      for (Index i = 0; i < padded * d_ff(); ++i) hidden[i] = activation_(gate[i], hidden[i]);
    } else {
      for (Index i = 0; i < padded * d_ff(); ++i) hidden[i] = activation_(hidden[i]);
    }
    linear(hidden, padded, d_ff(), down_of(e),
           config_.down_bias == DownBias::weighted ? down_bias_ : no_bias_, e, d_model(), y);
    for (Index r = 0; r < tile.count; ++r)
      std::copy_n(y + r * d_model(), d_model(), rows.row(tile.first + r));
  }

  ExpertsConfig config_;
  ActivationT activation_;
  Matrix<Scalar> gate_;       // (E * F, D), gated only
  Matrix<Scalar> up_;         // (E * F, D)
  Matrix<Scalar> down_;       // (E * D, F)
  Matrix<Scalar> gate_bias_;  // (E, F), with biases only
  Matrix<Scalar> up_bias_;    // (E, F), with biases only
  Matrix<Scalar> down_bias_;  // (E, D), with biases only
  Matrix<Scalar> no_bias_;    // empty
};

static_assert(ExpertBank<FeedForwardExperts<float, SwiGlu>>);
static_assert(ExpertBank<FeedForwardExperts<double, Relu>>);

}  // namespace moe::inline MOE_ABI
