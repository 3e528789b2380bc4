// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <new>
#include <unistd.h>
#include <utility>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>

namespace aligned_buffer_test {

using moe::AlignedBuffer;

TEST(AlignedBuffer, IsAlignedAndZero) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{1000}, std::size_t{1} << 20}) {
    AlignedBuffer<float> buffer(size);
    ASSERT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U);
    for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(buffer.data()[i], 0);
    buffer.data()[0] = 1;
    buffer.data()[size - 1] = 2;
  }
  EXPECT_EQ(AlignedBuffer<float>().data(), nullptr);
  EXPECT_EQ(AlignedBuffer<float>(0).size(), 0U);
}

#if defined(__linux__)
/// Pages of this process that are in memory.
long resident_pages() {
  long all = 0;
  long resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident;
}

TEST(AlignedBuffer, LiesInHugePagesAndTakesMemoryAsItIsWritten) {
  constexpr std::size_t huge_page = std::size_t{1} << 21;
  const long before = resident_pages();
  AlignedBuffer<char> large(std::size_t{1} << 29);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.data()) % huge_page, 0U);
  const long page = sysconf(_SC_PAGESIZE);
  EXPECT_LT((resident_pages() - before) * page, 1 << 24) << "of 512 MiB";
  large.data()[5 * huge_page] = 1;
  EXPECT_LT((resident_pages() - before) * page, 1 << 25);
}
#endif

TEST(AlignedBuffer, CopiesItsValuesAndMovesItsMemory) {
  for (const std::size_t size : {std::size_t{7}, std::size_t{1} << 20}) {
    AlignedBuffer<int> buffer(size);
    for (std::size_t i = 0; i < size; ++i) buffer.data()[i] = static_cast<int>(i);
    AlignedBuffer<int> copy = buffer;
    EXPECT_NE(copy.data(), buffer.data());
    EXPECT_EQ(copy.data()[size - 1], static_cast<int>(size - 1));
    const int* const memory = buffer.data();
    const AlignedBuffer<int> moved = std::move(buffer);
    EXPECT_EQ(moved.data(), memory);
    copy = AlignedBuffer<int>(3);
    EXPECT_EQ(copy.size(), 3U);
  }
}

TEST(AlignedBuffer, GrowsOnly) {
  AlignedBuffer<int> buffer(10);
  const int* const memory = buffer.data();
  buffer.grow(5);
  EXPECT_EQ(buffer.data(), memory);
  EXPECT_EQ(buffer.size(), 10U);
  buffer.grow(11);
  EXPECT_EQ(buffer.size(), 11U);
}

TEST(AlignedBuffer, RefusesWhatCannotBe) {
  EXPECT_THROW(AlignedBuffer<double>(std::numeric_limits<std::size_t>::max() / 8), std::bad_alloc);
  EXPECT_THROW(AlignedBuffer<char>(std::numeric_limits<std::size_t>::max() / 4), std::bad_alloc);
}

}  // namespace aligned_buffer_test
