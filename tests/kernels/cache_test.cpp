// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <unistd.h>

#include <gtest/gtest.h>

#include <moe/kernels/cache.hpp>

namespace {

TEST(SecondLevelCache, IsThatOfTheSystem) {
  const std::ptrdiff_t bytes = moe::kernels::second_level_cache();
  EXPECT_GE(bytes, 256 * 1024);
  EXPECT_LE(bytes, 4096 * 1024);
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long of_system = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (of_system >= 256 * 1024 && of_system <= 4096 * 1024 && moe::kernels::told_cache(2) > 0) {
    EXPECT_EQ(bytes, of_system);
  }
#endif
}

// The system's own figure is not compared: for some processors it counts every core's share.
TEST(ThirdLevelCache, IsOneThatProcessorsHave) {
  EXPECT_GE(moe::kernels::third_level_cache(), 1 << 20);
  EXPECT_LE(moe::kernels::third_level_cache(), std::ptrdiff_t{1} << 31);
}

}  // namespace
