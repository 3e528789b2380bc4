// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Models whose experts take few bits.
#pragma once

#include <string>

#include "language_model/model.hpp"

namespace language_model {

struct QuantizedOptions {
  std::string weights{};     // the format, or those of gate and up, and of down: "int4-g32,int8"
  std::string packed{};      // or a packed file, which has the experts already
  bool weight_only = false;  // activations stay floats
  bool no_search = false;    // scales from the largest weights
  std::string calibrate{};   // a text: errors count as it would multiply them
};

/// A model with the experts that the options say.
///
/// Throws  as Model; std::invalid_argument if there is no such format, or the text is empty;
///         moe::FormatError if the packed file does not fit.
Model<float> quantized_model(const moe::io::Checkpoint& checkpoint,
                             const QuantizedOptions& options);

}  // namespace language_model
