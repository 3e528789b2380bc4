// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Compiled for AVX2 and FMA on x86-64.
#include "run_layer.hpp"

std::vector<float> run_wide() {
  return run_layer();
}
