// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Aligned memory for weights and intermediate values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Zeroed memory, 64-byte aligned. One code for values of every type.
class AlignedMemory {
 public:
  static constexpr std::size_t alignment = 64;

  /// Throws  std::bad_alloc if there is not enough.
  MOE_COLD static void* allocate(std::size_t bytes) {
    if (is_mapped(bytes)) return map(bytes);
    void* const data = ::operator new (bytes, std::align_val_t{alignment});
    std::memset(data, 0, bytes);
    return data;
  }
  /// `bytes` as they were asked for.
  MOE_COLD static void release(void* data, std::size_t bytes) noexcept {
    if (is_mapped(bytes)) return unmap(data, bytes);
    ::operator delete (data, std::align_val_t{alignment});
  }

 private:
#if defined(__linux__)
  // A mapping of its own costs a system call and whole pages, so small buffers come from the heap.
  static constexpr std::size_t huge_page = std::size_t{1} << 21;
  static constexpr bool is_mapped(std::size_t bytes) noexcept {
    return bytes >= huge_page;
  }

  static void* map(std::size_t bytes) {
    // One huge page more than asked for, cut to a multiple of one at both ends.
    const std::size_t length = (bytes + huge_page - 1) / huge_page * huge_page;
    void* const mapped = ::mmap(nullptr, length + huge_page, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<std::byte*>(mapped);
    const std::size_t offset = reinterpret_cast<std::size_t>(begin) % huge_page;
    const std::size_t front = offset == 0 ? 0 : huge_page - offset;
    if (front > 0) ::munmap(begin, front);
    if (front < huge_page) ::munmap(begin + front + length, huge_page - front);
    ::madvise(begin + front, length, MADV_HUGEPAGE);
    return begin + front;
  }
  static void unmap(void* data, std::size_t bytes) noexcept {
    ::munmap(data, (bytes + huge_page - 1) / huge_page * huge_page);
  }
#else
  static constexpr bool is_mapped(std::size_t /*bytes*/) noexcept {
    return false;
  }
  static void* map(std::size_t /*bytes*/) {
    throw std::bad_alloc();
  }
  static void unmap(void* /*data*/, std::size_t /*bytes*/) noexcept {}
#endif
};

}  // namespace detail

/// `size` values that start as zeros, 64-byte aligned; large buffers lie in huge pages where the
/// system grants them, and take memory page by page as they are written.
///
/// Throws  std::bad_alloc if there is not enough memory.
template <class T>
class AlignedBuffer {
 public:
  static constexpr std::size_t alignment = detail::AlignedMemory::alignment;
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size) : size_(size) {
    if (size > std::numeric_limits<std::size_t>::max() / 2 / sizeof(T))
      throw std::bad_array_new_length();
    if (size > 0) data_ = static_cast<T*>(detail::AlignedMemory::allocate(size * sizeof(T)));
  }
  AlignedBuffer(const AlignedBuffer& other) : AlignedBuffer(other.size_) {
    std::copy_n(other.data_, size_, data_);
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~AlignedBuffer() {
    if (data_ != nullptr) detail::AlignedMemory::release(data_, size_ * sizeof(T));
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

  /// Makes room for at least `size` values; contents are lost where that takes new memory.
  void grow(std::size_t size) {
    if (size <= size_) return;
    *this = AlignedBuffer();
    *this = AlignedBuffer(size);
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace moe::inline MOE_ABI
