// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Running the same code with different numbers of threads.
#pragma once

#include <array>
#include <omp.h>

namespace test_support {

/// The numbers of threads for which results must agree to the bit.
inline constexpr std::array thread_counts{1, 2, 3, 7};

/// Sets OpenMP's number of threads until the end of the scope.
class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ScopedThreads(const ScopedThreads&) = delete;
  ScopedThreads& operator=(const ScopedThreads&) = delete;
  ~ScopedThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace test_support
