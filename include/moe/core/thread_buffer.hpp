// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that computations keep from call to call without being handed it.
#pragma once

#include <cstddef>
#include <utility>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/scratch.hpp"

namespace moe::inline MOE_ABI::detail {

/// While it lives, the functions below take this thread's memory from a scratch: so a layer's
/// workspace has all that a forward needs, whichever thread runs it.
class ScratchScope {
 public:
  explicit ScratchScope(Scratch& scratch) noexcept : before_(std::exchange(current(), &scratch)) {}
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;
  ~ScratchScope() { current() = before_; }

  /// The scratch of the innermost scope of this thread, or null.
  static Scratch*& current() noexcept {
    thread_local Scratch* scratch = nullptr;
    return scratch;
  }

 private:
  Scratch* before_;
};

/// An object of this thread alone, which keeps its memory from call to call: of the scope's
/// scratch, or as long as the thread lives.
template <class T>
T& thread_object() {
  if (Scratch* const scratch = ScratchScope::current()) return scratch->kept<T>();
  thread_local T object;
  return object;
}

template <class Tag, class T>
struct TaggedBuffer {
  AlignedBuffer<T> values;
};

/// Room for `size` values, of this thread alone: the same memory at every call with one tag, so
/// that a computation that was run before allocates nothing. Contents are what the last user left.
template <class Tag, class T>
T* thread_buffer(std::size_t size) {
  AlignedBuffer<T>& values = thread_object<TaggedBuffer<Tag, T>>().values;
  values.grow(size);
  return values.data();
}

}  // namespace moe::inline MOE_ABI::detail
