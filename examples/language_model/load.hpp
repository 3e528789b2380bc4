// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From named tensors to parts of a model, for a model that runs and for one that learns.
#pragma once

#include <string>
#include <utility>

#include <moe/core/types.hpp>
#include <moe/io/tensors.hpp>
#include <moe/moe.hpp>

#include "language_model/config.hpp"

namespace language_model {

using moe::Matrix;
using moe::Vector;

/// A normalisation of the width of the hidden states.
///
/// Throws  moe::FormatError, as all here, naming the tensor that is missing or has another shape.
template <class Norm>
Norm load_norm(const moe::io::Tensors& tensors, const ModelConfig& config,
               const std::string& name) {
  return Norm(tensors.vector<typename Norm::Scalar>(name, config.d_model), config.norm_epsilon);
}

/// One of the projections of an attention.
template <class LinearT>
LinearT load_linear(const moe::io::Tensors& tensors, const std::string& name, Index outputs,
                    Index inputs, bool has_bias) {
  using Scalar = typename LinearT::Scalar;
  return LinearT(tensors.matrix<Scalar>(name + ".weight", outputs, inputs),
                 has_bias ? tensors.vector<Scalar>(name + ".bias", outputs) : Vector<Scalar>());
}

/// An ordinary feed-forward block, as the one expert that every token passes through.
template <class Scalar>
moe::SwiGluExperts<Scalar> load_dense_bank(const moe::io::Tensors& tensors,
                                           const ModelConfig& config, const std::string& prefix) {
  const auto load = [&](const char* name, Index rows, Index cols) {
    return tensors.matrix<Scalar>(prefix + name + ".weight", rows, cols);
  };
  const Matrix<Scalar> gate = load("gate_proj", config.dense_d_ff, config.d_model);  // (F, D)
  const Matrix<Scalar> up = load("up_proj", config.dense_d_ff, config.d_model);      // (F, D)
  const Matrix<Scalar> down = load("down_proj", config.d_model, config.dense_d_ff);  // (D, F)
  moe::SwiGluExperts<Scalar> bank(
      {.num_experts = 1, .d_model = config.d_model, .d_ff = config.dense_d_ff});
  bank.set_expert(0, {.gate = gate, .up = up, .down = down});
  return bank;
}

}  // namespace language_model
