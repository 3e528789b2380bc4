// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the machine can do at best, measured in the same process as everything that is compared
// with it.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace benchmarks {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One way to reach a limit.
struct LimitForm {
  std::string name;
  double per_second = 0;         // operations or bytes, the most that was seen
  std::function<double()> once;  // measures it once more, in a few milliseconds
};

/// The forms that were tried; the limit is the best of them. 0 where the machine has none.
struct Limit {
  std::vector<LimitForm> forms;
  /// The most that any form has reached so far.
  double best() const;
  /// What the best two forms reach at this moment, the better of two shots: a machine that is
  /// shared gives more and less of its memory from one second to the next, and a benchmark is held
  /// against what there was when it ran.
  double now();
};

/// Single-precision operations, a fused multiply-add counted as two: all threads.
Limit& fma_limit();

/// Eight-bit operations, counted the same way: all threads.
Limit& vnni_limit();

/// Bytes read from memory: all threads, each over a part of its own, past the last-level cache.
Limit& read_limit();

/// Bytes of the last-level cache, 32 MiB where the system does not say.
double last_level_cache();

void register_limits();

}  // namespace benchmarks
