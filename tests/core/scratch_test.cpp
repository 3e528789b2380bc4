// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <gtest/gtest.h>

#include <moe/core/scratch.hpp>

namespace scratch_test {

using moe::Scratch;

bool is_aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % Scratch::alignment == 0;
}

TEST(Scratch, GivesEveryThreadABlockOfItsOwn) {
  Scratch scratch;
  for (const std::size_t bytes : {1U, 63U, 64U, 65U, 1000U}) {
    scratch.reserve(3, bytes);
    for (int thread = 0; thread < 3; ++thread) {
      auto* const block = scratch.of_thread<unsigned char>(thread);
      ASSERT_TRUE(is_aligned(block));
      std::memset(block, thread + 1, bytes);
    }
    for (int thread = 0; thread < 3; ++thread) {
      const auto* const block = scratch.of_thread<unsigned char>(thread);
      for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(block[i], thread + 1);
    }
  }
}

TEST(Scratch, WarmReservationsKeepTheMemory) {
  Scratch scratch;
  scratch.reserve(2, 1000);
  const auto* const first = scratch.of_thread<float>(0);
  const auto* const second = scratch.of_thread<float>(1);
  scratch.reserve(2, 1000);
  scratch.reserve(1, 10);
  scratch.reserve(0, 0);
  EXPECT_EQ(scratch.of_thread<float>(0), first);
  EXPECT_EQ(scratch.of_thread<float>(1), second);
}

TEST(Scratch, MoreThreadsLeaveTheOthersAlone) {
  Scratch scratch;
  scratch.reserve(1, 100);
  auto* const first = scratch.of_thread<unsigned char>(0);
  std::memset(first, 7, 100);
  scratch.reserve(4, 100);
  EXPECT_EQ(scratch.of_thread<unsigned char>(0), first);
  EXPECT_EQ(first[99], 7);
  std::memset(scratch.of_thread<unsigned char>(3), 8, 100);
  EXPECT_EQ(first[99], 7);
}

TEST(Scratch, ACopyHasMemoryOfItsOwn) {
  Scratch original;
  original.reserve(1, 100);
  auto* const block = original.of_thread<unsigned char>(0);
  Scratch copy = original;
  copy.reserve(1, 100);
  EXPECT_NE(copy.of_thread<unsigned char>(0), block);
  std::memset(copy.of_thread<unsigned char>(0), 1, 100);

  Scratch assigned;
  assigned.reserve(1, 10);
  assigned = original;
  assigned.reserve(2, 100);
  EXPECT_NE(assigned.of_thread<unsigned char>(0), block);
  std::memset(assigned.of_thread<unsigned char>(1), 1, 100);
  EXPECT_EQ(original.of_thread<unsigned char>(0), block);
}

TEST(Scratch, AMoveTakesTheMemory) {
  Scratch original;
  original.reserve(1, 100);
  const auto* const block = original.of_thread<unsigned char>(0);
  Scratch moved = std::move(original);
  moved.reserve(1, 100);
  EXPECT_EQ(moved.of_thread<unsigned char>(0), block);
}

}  // namespace scratch_test
