// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Grow-only memory for one forward pass: a block for each worker thread.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// Buffers that an expert bank may use while it runs. Contents do not survive a call.
/// One forward at a time: concurrent forwards use a Scratch each.
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;

  /// Makes at least `bytes` available to each of `threads` workers. Not for use inside a region.
  void reserve(int threads, std::size_t bytes) {
    if (blocks_.size() < static_cast<std::size_t>(threads))
      blocks_.resize(static_cast<std::size_t>(threads));
    for (Block& block : blocks_) {
      if (block.bytes >= bytes) continue;
      block.data.reset();
      block.bytes = 0;
      block.data.reset(
          static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment})));
      block.bytes = bytes;
    }
  }

  /// The block of one worker; 64-byte aligned.
  template <class T>
  T* of_thread(int thread) const noexcept {
    MOE_ASSERT(static_cast<std::size_t>(thread) < blocks_.size());
    return reinterpret_cast<T*>(blocks_[static_cast<std::size_t>(thread)].data.get());
  }

 private:
  struct Release {
    void operator()(std::byte* p) const noexcept {
      ::operator delete (p, std::align_val_t{alignment});
    }
  };
  struct Block {
    std::unique_ptr<std::byte, Release> data;
    std::size_t bytes = 0;

    // A copied layer gets scratch of its own on first use.
    Block() = default;
    Block(const Block& /*other*/) {}
    Block(Block&&) noexcept = default;
    Block& operator=(const Block& /*other*/) { return *this; }
    Block& operator=(Block&&) noexcept = default;
    ~Block() = default;
  };
  std::vector<Block> blocks_;
};

}  // namespace moe::inline MOE_ABI
