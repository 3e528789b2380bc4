// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that expert banks keep from one forward pass to the next.
#pragma once

#include <concepts>
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

  /// The object of this type that lives as long as the scratch; made at its first use. A copied
  /// scratch begins without.
  template <std::default_initializable T>
  T& kept() {
    void* object = find(&type_tag<T>);
    if (object == nullptr) {
      object = new T();
      keep({&type_tag<T>, object, [](void* any) { delete static_cast<T*>(any); }});
    }
    return *static_cast<T*>(object);
  }

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

  template <class T>
  static inline const char type_tag = 0;

  /// An object of any type. No smart pointer to each type: those take long to compile.
  struct Kept {
    const void* type;
    void* object;
    void (*destroy)(void* object);
  };
  /// A list that owns its objects and that a copy does not take over.
  struct KeptList {
    std::vector<Kept> objects;

    KeptList() = default;
    KeptList(const KeptList& /*other*/) {}
    KeptList(KeptList&& other) noexcept : objects(std::move(other.objects)) {}
    KeptList& operator=(const KeptList& /*other*/) { return *this; }
    KeptList& operator=(KeptList&& other) noexcept {
      std::swap(objects, other.objects);
      return *this;
    }
    ~KeptList() {
      for (const Kept& kept : objects) kept.destroy(kept.object);
    }
  };

  void* find(const void* type) const noexcept {
    for (const Kept& kept : kept_.objects)
      if (kept.type == type) return kept.object;
    return nullptr;
  }
  MOE_COLD void keep(const Kept& kept) {
    try {
      kept_.objects.push_back(kept);
    } catch (...) {
      kept.destroy(kept.object);
      throw;
    }
  }

  std::vector<Block> blocks_;
  KeptList kept_;
};

}  // namespace moe::inline MOE_ABI
