// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a bank of feed-forward experts has learnt, and gradients of it, in the order in which
// kernels read them.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <limits>
#include <span>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/expert_source.hpp"

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

namespace detail {

/// Throws  ShapeError, beginning with `where`, if something called `name` is not (rows, cols).
template <class Scalar>
void check_part(const char* where, const char* name, MatrixView<const Scalar> matrix, Index rows,
                Index cols) {
  if (matrix.rows() != rows || matrix.cols() != cols) [[unlikely]]
    throw ShapeError(text_of(where, ": ", name, ": expected (", rows, ", ", cols, "), got (",
                             matrix.rows(), ", ", matrix.cols(), ")"));
}

/// Throws  ShapeError, beginning with `where`, if a bias has not the bank's size, one that the bank
///         needs is empty, or one that it lacks is not.
template <class Scalar>
void check_bias_shapes(const char* where, const ExpertsConfig& config, bool gated,
                       const ExpertWeights<Scalar>& weights) {
  const Index biases = config.biases ? 1 : 0;
  const Index gates = gated ? biases : 0;
  check_part(where, "gate_bias", weights.gate_bias, config.d_ff * gates, gates);
  check_part(where, "up_bias", weights.up_bias, config.d_ff * biases, biases);
  check_part(where, "down_bias", weights.down_bias, config.d_model * biases, biases);
}

/// The same of matrices and biases.
template <class Scalar>
void check_expert_shapes(const char* where, const ExpertsConfig& config, bool gated,
                         const ExpertWeights<Scalar>& weights) {
  const Index gates = gated ? 1 : 0;
  check_part(where, "gate", weights.gate, config.d_ff * gates, config.d_model * gates);
  check_part(where, "up", weights.up, config.d_ff, config.d_model);
  check_part(where, "down", weights.down, config.d_model, config.d_ff);
  check_bias_shapes(where, config, gated, weights);
}

/// An expert's bias, (outputs, 1), to where its matrix has the outputs, and back.
template <class Scalar>
void put_bias(Index expert, PanelRole role, MatrixView<const Scalar> bias, Matrix<Scalar>& biases) {
  for (Index o = 0; o < bias.rows(); ++o) biases(expert, panel_column(role, o)) = bias(o, 0);
}
template <class Scalar>
Matrix<Scalar> get_bias(const Matrix<Scalar>& biases, Index expert, PanelRole role, Index outputs) {
  Matrix<Scalar> bias(outputs, 1);
  for (Index o = 0; o < outputs; ++o) bias(o, 0) = biases(expert, panel_column(role, o));
  return bias;
}

/// Matrices and biases of E experts. Panels are filled up with zeros.
template <class Scalar, bool gated, class Storage = Scalar>
class PackedExperts {
 public:
  /// Hidden values that one panel of the up step gives.
  static constexpr Index hidden_width = gated ? kernels::gated_width : kernels::panel_width;
  static constexpr PanelRole up_role = gated ? PanelRole::up : PanelRole::plain;

  /// Zeros.
  ///
  /// Throws  std::invalid_argument, beginning with `where`, if a size is not positive or the
  ///         weights exceed all memory.
  PackedExperts(const char* where, const ExpertsConfig& its_config) : config(its_config) {
    check(config.num_experts > 0, where, "num_experts must be positive");
    check(config.d_model > 0, where, "d_model must be positive");
    check(config.d_ff > 0, where, "d_ff must be positive");
    const auto filled_up = [](Index size, Index width) {
      return (size - 1) / width * width + width;
    };
    const Index most = std::numeric_limits<Index>::max() / 8 - 64;
    check(config.d_model < most && config.d_ff < most, where, "the sizes are too large");
    const Index columns = (gated ? 2 : 1) * filled_up(config.d_ff, hidden_width);
    const Index hidden = product(where, config.num_experts, columns);
    product(where, hidden, product(where, config.d_model, sizeof(Scalar)));
    const Index outputs = filled_up(config.d_model, kernels::panel_width);
    const Index rows = product(where, config.num_experts, outputs);
    product(where, rows, product(where, config.d_ff, sizeof(Scalar)));
    up = {config.num_experts, columns, config.d_model};
    down = {config.num_experts, outputs, config.d_ff};
    if (config.biases) {
      up_bias.setZero(config.num_experts, columns);
      down_bias.setZero(config.num_experts, outputs);
    }
  }

  /// Copies one expert in, in its parts (see FeedForwardExperts::set_expert).
  void set(const char* where, Index expert, const ExpertWeights<Scalar>& weights) {
    check(expert >= 0 && expert < config.num_experts, where, "expert is out of range");
    check_expert_shapes(where, config, gated, weights);
    if constexpr (gated) up.pack(expert, PanelRole::gate, weights.gate);
    up.pack(expert, up_role, weights.up);
    down.pack(expert, PanelRole::plain, weights.down);
    if (!config.biases) return;
    if constexpr (gated) put_bias(expert, PanelRole::gate, weights.gate_bias, up_bias);
    put_bias(expert, up_role, weights.up_bias, up_bias);
    put_bias(expert, PanelRole::plain, weights.down_bias, down_bias);
  }

  /// A copy of one expert.
  ExpertMatrices<Scalar> get(const char* where, Index expert) const {
    check(expert >= 0 && expert < config.num_experts, where, "expert is out of range");
    ExpertMatrices<Scalar> matrices;
    const auto unpack = [&](const PackedMatrices<Storage>& from, PanelRole role, Index outputs,
                            Index inner, Matrix<Scalar>& to) {
      to.resize(outputs, inner);
      from.template unpack<Scalar>(expert, role, to);
    };
    if constexpr (gated) unpack(up, PanelRole::gate, config.d_ff, config.d_model, matrices.gate);
    unpack(up, up_role, config.d_ff, config.d_model, matrices.up);
    unpack(down, PanelRole::plain, config.d_model, config.d_ff, matrices.down);
    if (!config.biases) return matrices;
    if constexpr (gated)
      matrices.gate_bias = get_bias(up_bias, expert, PanelRole::gate, config.d_ff);
    matrices.up_bias = get_bias(up_bias, expert, up_role, config.d_ff);
    matrices.down_bias = get_bias(down_bias, expert, PanelRole::plain, config.d_model);
    return matrices;
  }

  /// Weights as they lie, padding included: up, down, their biases.
  template <std::same_as<Scalar> S = Storage>
  std::array<std::span<Scalar>, 4> values() noexcept {
    const auto all = [](Matrix<Scalar>& m) {
      return std::span<Scalar>(m.data(), static_cast<std::size_t>(m.size()));
    };
    return {up.values(), down.values(), all(up_bias), all(down_bias)};
  }

  const Scalar* up_bias_of(Index expert, Index panel) const noexcept {
    return bias_of(up_bias, expert, panel);
  }
  const Scalar* down_bias_of(Index expert, Index panel) const noexcept {
    return bias_of(down_bias, expert, panel);
  }

  ExpertsConfig config;
  PackedMatrices<Storage> up;    // gate and up in one, inner D
  PackedMatrices<Storage> down;  // inner F
  Matrix<Scalar> up_bias;        // (E, columns of up), with biases only
  Matrix<Scalar> down_bias;      // (E, columns of down), with biases only

 private:
  static const Scalar* bias_of(const Matrix<Scalar>& biases, Index expert, Index panel) noexcept {
    return biases.size() == 0
               ? nullptr
               : biases.data() + expert * biases.cols() + panel * kernels::panel_width;
  }
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI
