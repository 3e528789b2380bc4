// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A program with two translation units of different flags: each must run its own code of the
// library, not the one that the linker met first.
#include <cstdio>
#include <omp.h>
#include <vector>

std::vector<float> run_serial();
std::vector<float> run_threaded();
int threads_of_serial();
int threads_of_threaded();

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
}
