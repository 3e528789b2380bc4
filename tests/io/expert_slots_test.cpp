// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/expert_slots.hpp>

#include "support/temporary_file.hpp"

namespace expert_slots_test {

using moe::Index;
using moe::io::MappedFile;
using Slots = moe::io::detail::ExpertSlots;

constexpr std::size_t piece_bytes = 512 * 1024;

/// A file of random bytes.
class ExpertSlots : public test_support::TemporaryFile {
 protected:
  void SetUp() override {
    std::mt19937_64 rng(1);
    std::string bytes(16 * piece_bytes, ' ');
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(rng()); });
    write(bytes);
  }

  /// Parts of the file, one behind the other, as experts.
  static std::vector<Slots::Piece> pieces(std::size_t count) {
    std::vector<Slots::Piece> result;
    for (std::size_t i = 0; i < count; ++i) result.push_back({"", piece_bytes * i, piece_bytes});
    return result;
  }

  /// Whether the slots have the file's bytes of that part.
  static bool has_bytes(const Slots& slots, const MappedFile& file, Index piece) {
    const std::byte* const of_file =
        file.bytes().data() + piece_bytes * static_cast<std::size_t>(piece);
    return std::memcmp(of_file, slots.data(piece), piece_bytes) == 0;
  }
};

TEST_F(ExpertSlots, PinnedExpertsThatFoundNoSlotGetOneLater) {
  Slots slots(MappedFile(path_), pieces(8), 3 * piece_bytes);
  EXPECT_EQ(slots.acquire({0, 1, 2}).size(), 3U);
  slots.pin(std::vector<Index>{6});  // All slots are held.
  slots.release();
  slots.begin_forward();
  EXPECT_EQ(slots.acquire({6}).size(), 1U);
  slots.release();
  EXPECT_EQ(slots.counters().misses, 3U) << "6 was on its way or there";
}

TEST_F(ExpertSlots, PinnedExpertsThatAreAskedForTakeNoRoomFromOthers) {
  Slots slots(MappedFile(path_), pieces(8), 3 * piece_bytes);
  EXPECT_EQ(slots.size(), 3U);
  slots.pin(std::vector<Index>{6, 7});
  EXPECT_EQ(slots.acquire({0, 6, 7}).size(), 3U);
  slots.release();
  EXPECT_EQ(slots.acquire({0, 1, 6}).size(), 2U);
  slots.release();
  EXPECT_EQ(slots.acquire({0, 1, 2}).size(), 1U);
  slots.release();
}

TEST_F(ExpertSlots, FewerSlotsThanReadersHoldWhatIsAskedFor) {
  const MappedFile file(path_);
  constexpr std::size_t count = 16;
  for (std::size_t num_slots = 1; num_slots <= 3; ++num_slots) {
    Slots slots(file, pieces(count), static_cast<double>(piece_bytes * num_slots));
    std::mt19937_64 rng(num_slots);
    const auto some = [&](std::size_t most) {
      std::set<Index> of;
      while (of.size() < most) of.insert(static_cast<Index>(rng() % count));
      return std::vector<Index>(of.begin(), of.end());
    };
    std::size_t acquired = 0;
    for (int step = 0; step < 300; ++step) {
      slots.begin_forward();
      slots.prefetch(some(3));
      using Clock = std::chrono::steady_clock;  // Some reads have begun by then, some have not.
      const auto until = Clock::now() + std::chrono::microseconds(rng() % 100);
      while (Clock::now() < until) continue;
      const std::vector<Index> there = slots.acquire(some(num_slots));
      ASSERT_EQ(there.size(), num_slots);
      acquired += there.size();
      for (const Index e : there) ASSERT_TRUE(has_bytes(slots, file, e)) << step << ": " << e;
      slots.release();
    }
    const moe::io::CacheCounters counters = slots.counters();
    EXPECT_EQ(counters.hits + counters.awaited + counters.misses, acquired);
  }
}

TEST_F(ExpertSlots, WhatCannotBeReadIsAnErrorOfWhoeverAsksForIt) {
  const MappedFile file(path_);
  std::vector<Slots::Piece> some = pieces(4);
  some[1].offset = file.bytes().size() + 100;
  some[2].offset = file.bytes().size() + 200;
  Slots slots(file, some, 4 * piece_bytes);
  const auto error_of = [&](const std::vector<Index>& of) -> std::string {
    try {
      slots.acquire(of);
    } catch (const moe::FormatError& error) {
      return error.what();
    }
    return "";
  };
  const auto byte = [&](std::size_t piece) { return std::to_string(some[piece].offset); };
  for (int i = 0; i < 20; ++i) {  // The first that is asked for, whichever is read first.
    EXPECT_NE(error_of({0, 1, 2, 3}).find(byte(1)), std::string::npos);
    EXPECT_EQ(error_of({0, 3}), "");
    for (const Index e : {Index{0}, Index{3}}) EXPECT_TRUE(has_bytes(slots, file, e));
    slots.release();
    EXPECT_NE(error_of({3, 2}).find(byte(2)), std::string::npos);
  }
}

TEST_F(ExpertSlots, MayEndWhileItReads) {
  const MappedFile file(path_);
  for (int i = 0; i < 100; ++i) {
    Slots slots(file, pieces(16), 16 * piece_bytes);
    slots.prefetch(std::vector<Index>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
  }
}

}  // namespace expert_slots_test
