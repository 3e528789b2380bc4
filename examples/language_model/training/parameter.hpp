// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What an optimiser sees of a model.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/core/view.hpp>

namespace language_model::training {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::Vector;

/// Values that are learnt, and their gradient, element by element.
template <class Scalar>
struct Parameter {
  std::string name;
  std::span<Scalar> values;
  std::span<Scalar> gradient;
  bool decays = false;  ///< weight decay acts on matrices
};

template <class Scalar>
using Parameters = std::vector<Parameter<Scalar>>;

/// Called with the name and the values of a tensor of a checkpoint, vectors as one column.
template <class Scalar>
using TensorUse =
    std::function<void(const std::string& name, const Matrix<Scalar>& values, bool is_vector)>;

/// A view of a matrix or vector as one run of values.
template <class M>
auto values_of(M& m) {
  return std::span(m.data(), static_cast<std::size_t>(m.size()));
}

}  // namespace language_model::training
