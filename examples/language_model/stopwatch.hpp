// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Wall-clock time.
#pragma once

#include <chrono>

namespace language_model {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// `count` over `seconds`; 0 where no time was measured.
inline double rate(double count, double seconds) {
  return seconds > 0 ? count / seconds : 0;
}

}  // namespace language_model
