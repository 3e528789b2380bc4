// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "run_layer.hpp"

std::vector<float> run_threaded() {
  return run_layer();
}
int threads_of_threaded() {
  return moe::parallel::available_threads();
}
