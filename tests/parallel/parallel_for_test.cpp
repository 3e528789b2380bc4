// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/parallel/parallel_for.hpp>

#include "support/threads.hpp"

namespace parallel_for_test {

using moe::Index;
using test_support::ScopedThreads;
namespace parallel = moe::parallel;

TEST(AvailableThreads, IsTheCallersSetting) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
#if defined(_OPENMP)
    EXPECT_EQ(parallel::available_threads(), count);
#else
    EXPECT_EQ(parallel::available_threads(), 1);
#endif
  }
}

TEST(ForEachTask, RunsEveryTaskOnce) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
    for (const Index tasks : {0, 1, 2, 3, 7, 8, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      std::atomic<bool> is_thread_valid = true;
      parallel::for_each_task(tasks, [&](Index task, int thread) {
        ++runs.at(static_cast<std::size_t>(task));
        if (thread < 0 || thread >= count) is_thread_valid = false;
      });
      for (const auto& number : runs) ASSERT_EQ(number, 1);
      EXPECT_TRUE(is_thread_valid);
    }
  }
}

// What a thread number stands for: memory of its own without locks.
TEST(ForEachTask, NoTwoWorkersShareAThreadNumber) {
  const ScopedThreads threads(7);
  std::mutex mutex;
  std::set<std::pair<int, std::thread::id>> pairs;
  parallel::for_each_task(500, [&](Index /*task*/, int thread) {
    const std::lock_guard lock(mutex);
    pairs.emplace(thread, std::this_thread::get_id());
  });
  std::set<int> numbers;
  std::set<std::thread::id> ids;
  for (const auto& [number, id] : pairs) {
    numbers.insert(number);
    ids.insert(id);
  }
  EXPECT_EQ(numbers.size(), pairs.size());
  EXPECT_EQ(ids.size(), pairs.size());
}

TEST(ForEachTask, RethrowsWhatATaskThrew) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
    for (const Index tasks : {1, 2, 100}) {
      for (const Index bad : {Index{0}, tasks / 2, tasks - 1}) {
        try {
          parallel::for_each_task(tasks, [&](Index task, int /*thread*/) {
            if (task == bad) throw std::out_of_range("task " + std::to_string(task));
          });
          FAIL() << "no exception";
        } catch (const std::out_of_range& error) {
          EXPECT_EQ(error.what(), "task " + std::to_string(bad));
        }
      }
    }
  }
}

TEST(ForEachTask, RethrowsOneOfManyAndLeavesTheRestOut) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
    std::atomic<int> begun = 0;
    EXPECT_THROW(parallel::for_each_task(100000,
                                         [&](Index /*task*/, int /*thread*/) {
                                           ++begun;
                                           throw std::runtime_error("every task");
                                         }),
                 std::runtime_error);
    EXPECT_GE(begun, 1);
    // Each worker leaves after a task of its own threw.
    EXPECT_LE(begun, count);
  }
}

TEST(ForEachTask, WorksAgainAfterAnException) {
  const ScopedThreads threads(3);
  EXPECT_THROW(parallel::for_each_task(10, [](Index, int) { throw 1; }), int);
  std::atomic<int> runs = 0;
  parallel::for_each_task(10, [&](Index, int) { ++runs; });
  EXPECT_EQ(runs, 10);
}

TEST(ForEachTask, RunsOnTheCallersThreadInsideAnotherTask) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
    std::atomic<int> inner = 0;
    std::atomic<int> strangers = 0;
    parallel::for_each_task(5, [&](Index /*task*/, int /*thread*/) {
      const auto caller = std::this_thread::get_id();
      if (count > 1 && parallel::available_threads() != 1) ++strangers;
      if (count == 1) return;
      parallel::for_each_task(20, [&](Index /*task*/, int thread) {
        ++inner;
        if (thread != 0 || std::this_thread::get_id() != caller) ++strangers;
      });
    });
    EXPECT_EQ(inner, count == 1 ? 0 : 100);
    EXPECT_EQ(strangers, 0);
  }
}

#if defined(_OPENMP)
TEST(ForEachTask, RunsOnTheCallersThreadInsideAParallelRegion) {
  std::atomic<int> inner = 0;
  std::atomic<int> strangers = 0;
  const ScopedThreads threads(3);
  const int previous = omp_get_max_active_levels();
  omp_set_max_active_levels(4);  // Even where the caller would allow nesting.
#pragma omp parallel num_threads(2)
  {
    const auto caller = std::this_thread::get_id();
#pragma omp single
    {
      if (parallel::available_threads() != 1) ++strangers;
      parallel::for_each_task(20, [&](Index /*task*/, int thread) {
        ++inner;
        if (thread != 0 || std::this_thread::get_id() != caller) ++strangers;
      });
    }
  }
  omp_set_max_active_levels(previous);
  EXPECT_EQ(inner, 20);
  EXPECT_EQ(strangers, 0);
}

TEST(ForEachTask, AnExceptionInsideAParallelRegionReachesItsCaller) {
  std::atomic<int> caught = 0;
#pragma omp parallel num_threads(2)
  {
    try {
      parallel::for_each_task(4, [](Index task, int /*thread*/) {
        if (task == 2) throw std::runtime_error("inside");
      });
    } catch (const std::runtime_error&) {
      ++caught;
    }
  }
  EXPECT_EQ(caught, 2);
}
#endif

TEST(ForEachBlock, CoversTheRangeInFixedBlocks) {
  for (const int count : test_support::thread_counts) {
    const ScopedThreads threads(count);
    for (const Index size : {0, 1, 31, 32, 33, 64, 100}) {
      std::mutex mutex;
      std::set<std::pair<Index, Index>> blocks;
      parallel::for_each_block(size, 32, [&](Index begin, Index end) {
        const std::lock_guard lock(mutex);
        EXPECT_TRUE(blocks.emplace(begin, end).second);
      });
      std::set<std::pair<Index, Index>> expected;
      for (Index begin = 0; begin < size; begin += 32)
        expected.emplace(begin, begin + 32 < size ? begin + 32 : size);
      EXPECT_EQ(blocks, expected) << size << " with " << count << " threads";
    }
  }
}

}  // namespace parallel_for_test
