// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The only place that starts threads.
#pragma once

#include <atomic>
#include <exception>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>  // <thread> would be a twentieth of what the library takes to compile.
#else
#include <thread>
#endif

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI::parallel {

/// Workers that a loop started here would get: OpenMP's own setting, and 1 inside a parallel region
/// of the caller or without OpenMP.
inline int available_threads() noexcept {
#if defined(_OPENMP)
  return omp_get_level() > 0 ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// One turn of a loop that waits for another thread, the `spins`-th.
inline void pause(int spins) noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();  // The sibling on the same core computes.
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
  if (spins <= 2000) return;
#if defined(__linux__)  // More threads than cores.
  sched_yield();
#else
  std::this_thread::yield();
#endif
}

namespace detail {

/// for_each_task for a body of any type: one region for all of them, since a region and its
/// exceptions take longer to compile than most bodies. `call(body, task, thread)` runs a task.
inline void run_tasks(Index tasks, void* body, void (*call)(void* body, Index task, int thread)) {
  // All threads, however few tasks there are: where a region has fewer threads than the one before,
  // GNU's runtime ends those that are left over, and a later region makes new ones.
  const int threads = available_threads();
  if (threads <= 1 || tasks <= 1) {
    for (Index task = 0; task < tasks; ++task) call(body, task, 0);
    return;
  }
#if defined(_OPENMP)
  std::atomic<Index> next{0};
  std::exception_ptr error;
  std::atomic_flag has_error;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    for (;;) {
      const Index task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) break;
      try {
        call(body, task, thread);
      } catch (...) {
        // The region's closing barrier orders this write before the rethrow.
        if (!has_error.test_and_set()) error = std::current_exception();
        next.store(tasks, std::memory_order_relaxed);
      }
    }
  }
  if (error) std::rethrow_exception(std::move(error));
#endif
}

}  // namespace detail

/// Runs body(task, thread) for every task in 0 .. tasks-1, in any order, `thread` in
/// 0 .. available_threads()-1. Tasks are claimed one by one, so put the largest first.
///
/// Throws  the first exception that a task threw; tasks not yet begun are then left out.
template <class Body>
void for_each_task(Index tasks, const Body& body) {
  detail::run_tasks(tasks, const_cast<Body*>(&body), [](void* any, Index task, int thread) {
    (*static_cast<const Body*>(any))(task, thread);
  });
}

/// Runs body(begin, end) over 0 .. count-1 in blocks of `grain` (the last may be shorter). The
/// blocks do not depend on the number of threads.
template <class Body>
void for_each_block(Index count, Index grain, const Body& body) {
  for_each_task((count + grain - 1) / grain, [&](Index block, int /*thread*/) {
    const Index begin = block * grain;
    body(begin, begin + grain < count ? begin + grain : count);
  });
}

}  // namespace moe::inline MOE_ABI::parallel
