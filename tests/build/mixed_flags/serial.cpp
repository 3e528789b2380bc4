// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "run_layer.hpp"

#if defined(_OPENMP)
#error "this file must be compiled without OpenMP"
#endif

std::vector<float> run_serial() {
  return run_layer();
}
int threads_of_serial() {
  return moe::parallel::available_threads();
}
