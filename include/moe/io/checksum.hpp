// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Checksums of files: against accidents, not against enemies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "moe/core/config.hpp"
#include "moe/core/random.hpp"

namespace moe::inline MOE_ABI::io {

/// 64 bits that change, all but certainly, with any byte. Taken over pieces of any size in a row;
/// where the pieces are cut does not matter as long as all but the last are multiples of 32 bytes.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) noexcept {
    std::size_t at = 0;
    for (; at + 32 <= bytes.size(); at += 32)
      for (std::size_t lane = 0; lane < 4; ++lane) mix(lane, bytes.data() + at + 8 * lane, 8);
    for (std::size_t lane = 0; at < bytes.size(); ++lane, at += 8)
      mix(lane % 4, bytes.data() + at, bytes.size() - at < 8 ? bytes.size() - at : 8);
    size_ += bytes.size();
  }

  std::uint64_t value() const noexcept {
    std::uint64_t result = size_;
    for (const std::uint64_t state : state_) result = moe::detail::mix_bits(result ^ state);
    return result;
  }

  /// Sixteen hexadecimal digits.
  std::string text() const {
    constexpr const char* digits = "0123456789abcdef";
    std::string result(16, '0');
    const std::uint64_t number = value();
    for (std::size_t i = 0; i < 16; ++i) result[i] = digits[(number >> (60 - 4 * i)) & 15U];
    return result;
  }

 private:
  void mix(std::size_t lane, const std::byte* from, std::size_t count) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, from, count);
    std::uint64_t& state = state_[lane];
    state = (state ^ word) * 0x9e3779b97f4a7c15U;
    state ^= state >> 29U;
  }

  std::uint64_t state_[4] = {1, 2, 3, 4};
  std::uint64_t size_ = 0;
};

/// That of one piece.
inline std::string checksum_of(std::span<const std::byte> bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.text();
}

}  // namespace moe::inline MOE_ABI::io
