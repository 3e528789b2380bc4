// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// One expert's matrices: as a bank takes them, and as checkpoints store them.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI {

/// The matrices of one expert, each [out, in] as in a linear layer. A plain expert has no gate.
///
/// Shapes  gate, up (F, D); down (D, F); gate_bias, up_bias (F, 1); down_bias (D, 1), empty without
///         biases.
template <class Scalar>
struct ExpertWeights {
  MatrixView<const Scalar> gate{};
  MatrixView<const Scalar> up{};
  MatrixView<const Scalar> down{};
  MatrixView<const Scalar> gate_bias{};
  MatrixView<const Scalar> up_bias{};
  MatrixView<const Scalar> down_bias{};
};

/// Which way round a matrix is stored.
enum class Orientation {
  out_in,  ///< as in a linear layer: y = W x
  in_out,  ///< transposed
};

/// How gate and up lie in a fused matrix, along its outputs.
enum class GateUpOrder {
  halves,       ///< all gates, then all ups
  interleaved,  ///< gate 0, up 0, gate 1, up 1 ...: gpt-oss
};

/// One expert in a checkpoint's layout: gate and up apart, or fused in `gate_up`.
///
/// Shapes  by `orientation`: gate, up (F, D) or (D, F), gate_up (2 F, D) or (D, 2 F); by
///         `down_orientation`: down (D, F) or (F, D); gate_bias, up_bias (F, 1), gate_up_bias
///         (2 F, 1), down_bias (D, 1). What the expert lacks is empty.
template <class Scalar>
struct ExpertSource {
  MatrixView<const Scalar> gate{};
  MatrixView<const Scalar> up{};
  MatrixView<const Scalar> gate_up{};
  MatrixView<const Scalar> down{};
  MatrixView<const Scalar> gate_bias{};
  MatrixView<const Scalar> up_bias{};
  MatrixView<const Scalar> gate_up_bias{};
  MatrixView<const Scalar> down_bias{};
  Orientation orientation = Orientation::out_in;
  Orientation down_orientation = Orientation::out_in;
  GateUpOrder gate_up_order = GateUpOrder::halves;
};

/// Owning matrices of one expert, [out, in].
template <class Scalar>
struct ExpertMatrices {
  Matrix<Scalar> gate;       // (F, D)
  Matrix<Scalar> up;         // (F, D)
  Matrix<Scalar> down;       // (D, F)
  Matrix<Scalar> gate_bias;  // (F, 1)
  Matrix<Scalar> up_bias;    // (F, 1)
  Matrix<Scalar> down_bias;  // (D, 1)

  ExpertWeights<Scalar> weights() const { return {gate, up, down, gate_bias, up_bias, down_bias}; }
};

/// Brings an expert into the form that a bank takes.
///
/// Throws  ShapeError if a fused matrix has an odd number of outputs; std::invalid_argument if gate
///         or up is given twice.
template <class Scalar>
ExpertMatrices<Scalar> separate(const ExpertSource<Scalar>& source) {
  constexpr const char* where = "separate";
  const auto oriented = [](MatrixView<const Scalar> m, Orientation orientation) -> Matrix<Scalar> {
    if (orientation == Orientation::in_out) return m.map().transpose();
    return m.map();
  };
  ExpertMatrices<Scalar> result;
  result.down = oriented(source.down, source.down_orientation);
  result.down_bias = source.down_bias.map();
  // Rows first, first + step, ... of a fused matrix.
  const auto part = [&](const Matrix<Scalar>& fused, bool second) {
    const Index rows = fused.rows() / 2;
    const bool mixed = source.gate_up_order == GateUpOrder::interleaved;
    Matrix<Scalar> half(rows, fused.cols());
    for (Index r = 0; r < rows; ++r)
      half.row(r) = fused.row(mixed ? 2 * r + (second ? 1 : 0) : r + (second ? rows : 0));
    return half;
  };
  const auto split = [&](MatrixView<const Scalar> fused_view, Orientation orientation,
                         MatrixView<const Scalar> gate, MatrixView<const Scalar> up,
                         Matrix<Scalar>& to_gate, Matrix<Scalar>& to_up) {
    if (fused_view.empty()) {
      to_gate = oriented(gate, orientation);
      to_up = oriented(up, orientation);
      return;
    }
    detail::check(gate.empty() && up.empty(), where, "gate and up are given apart and fused");
    const Matrix<Scalar> fused = oriented(fused_view, orientation);
    detail::check_size(where, "odd outputs of gate_up", 0, fused.rows() % 2);
    to_gate = part(fused, false);
    to_up = part(fused, true);
  };
  split(source.gate_up, source.orientation, source.gate, source.up, result.gate, result.up);
  split(source.gate_up_bias, Orientation::out_in, source.gate_bias, source.up_bias,
        result.gate_bias, result.up_bias);
  return result;
}

}  // namespace moe::inline MOE_ABI
