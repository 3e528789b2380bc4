// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that is read in several streams, or is not.
#pragma once

#include <moe/kernels/cache.hpp>

namespace test_support {

/// Sets whether memory is read in several streams, until it goes out of scope.
class Streams {
 public:
  explicit Streams(bool choice) : before_(moe::kernels::stream_choice().exchange(choice)) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  ~Streams() { moe::kernels::stream_choice() = before_; }

 private:
  bool before_;
};

}  // namespace test_support
