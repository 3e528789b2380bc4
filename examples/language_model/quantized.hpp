// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Experts in few bits, for any command that runs a model.
#pragma once

#include <string>

#include "language_model/model.hpp"

namespace language_model {

struct QuantizedOptions {
  std::string weights;       // the format, or those of gate and up, and of down: "int4-g32,int8"
  bool weight_only = false;  // activations stay floats
  bool no_search = false;    // scales from the largest weights
};

/// Throws  std::invalid_argument if there is no such format.
MixtureLoader<float> quantized_mixtures(const QuantizedOptions& options);

}  // namespace language_model
