// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstring>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <gtest/gtest.h>

#include <moe/kernels/cache.hpp>

namespace cache_test {

/// Whether QEMU emulates the processor, whose caches it tells of in contradictory ways.
bool is_emulated() {
#if defined(__x86_64__)
  unsigned a = 0;
  char name[13] = {};
  unsigned words[3] = {};
  __cpuid(0x40000000U, a, words[0], words[1], words[2]);
  std::memcpy(name, words, sizeof words);
  return std::strcmp(name, "TCGTCGTCGTCG") == 0;
#else
  return false;
#endif
}

TEST(SecondLevelCache, IsThatOfTheSystem) {
  const std::ptrdiff_t bytes = moe::kernels::second_level_cache();
  EXPECT_GE(bytes, 256 * 1024);
  EXPECT_LE(bytes, 4096 * 1024);
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long of_system = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (of_system >= 256 * 1024 && of_system <= 4096 * 1024 && moe::kernels::told_cache(2) > 0 &&
      !is_emulated()) {
    EXPECT_EQ(bytes, of_system);
  }
#endif
}

// The system's own figure is not compared: for some processors it counts every core's share.
TEST(ThirdLevelCache, IsOneThatProcessorsHave) {
  EXPECT_GE(moe::kernels::third_level_cache(), 1 << 20);
  EXPECT_LE(moe::kernels::third_level_cache(), std::ptrdiff_t{1} << 31);
}

}  // namespace cache_test
