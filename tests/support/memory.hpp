// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What products take memory for: read in several streams or not, behind a large cache or a small
// one.
#pragma once

#include <atomic>
#include <cstddef>

#include <moe/kernels/cache.hpp>

namespace test_support {

/// Sets a value until it goes out of scope.
template <class T>
class ScopedValue {
 public:
  ScopedValue(std::atomic<T>& value, T choice) : value_(value), before_(value.exchange(choice)) {}
  ScopedValue(const ScopedValue&) = delete;
  ScopedValue& operator=(const ScopedValue&) = delete;
  ~ScopedValue() { value_ = before_; }

 private:
  std::atomic<T>& value_;
  T before_;
};

/// Whether memory is read in several streams.
struct Streams : ScopedValue<bool> {
  explicit Streams(bool choice) : ScopedValue(moe::kernels::stream_choice(), choice) {}
};

/// The size of the third-level cache, in bytes.
struct ThirdLevelCache : ScopedValue<std::ptrdiff_t> {
  explicit ThirdLevelCache(std::ptrdiff_t bytes)
      : ScopedValue(moe::kernels::third_level_choice(), bytes) {}
};

}  // namespace test_support
