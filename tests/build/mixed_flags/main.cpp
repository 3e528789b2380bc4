// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A program with two translation units of different flags: each must run its own code of the
// library, not the one that the linker met first.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <omp.h>
#include <vector>

std::vector<float> run_serial();
std::vector<float> run_threaded();
std::vector<float> run_wide();
int threads_of_serial();
int threads_of_threaded();

/// Whether this machine runs what the wide unit was compiled for.
static bool runs_wide() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#else
  return true;
#endif
}

int main() {
  omp_set_num_threads(3);
  if (threads_of_serial() != 1 || threads_of_threaded() != 3) {
    std::printf("threads: %d and %d\n", threads_of_serial(), threads_of_threaded());
    return 1;
  }
  if (run_serial() != run_threaded()) {
    std::printf("the outputs differ\n");
    return 1;
  }
  // Of a unit that needs a newer machine. Kernels are the same; code around them may have been
  // fused.
  if (runs_wide()) {
    const std::vector<float> wide = run_wide();
    const std::vector<float> narrow = run_serial();
    for (std::size_t i = 0; i < wide.size(); ++i) {
      if (std::fabs(wide[i] - narrow[i]) > 1e-5F) {
        std::printf("the outputs differ: %g and %g\n", wide[i], narrow[i]);
        return 1;
      }
    }
  }
}
