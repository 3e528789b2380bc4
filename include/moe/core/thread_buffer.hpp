// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that a thread keeps for short computations.
#pragma once

#include <cstddef>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI::detail {

/// Room for `size` values, of this thread alone: the same memory at every call with one tag, so
/// that a computation that was run before allocates nothing. Contents are what the last user left.
template <class Tag, class T>
T* thread_buffer(std::size_t size) {
  thread_local AlignedBuffer<T> buffer;
  buffer.grow(size);
  return buffer.data();
}

/// An object of this thread alone, which keeps its memory from call to call.
template <class T>
T& thread_object() {
  thread_local T object;
  return object;
}

}  // namespace moe::inline MOE_ABI::detail
