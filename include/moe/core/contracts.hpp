// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What happens when a caller or a file breaks a contract. Checks run once, before any work; the
// throws stand in cold functions, so that a check costs a compare.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "moe/core/config.hpp"

/// An invariant of the library itself, not of its input. Off with NDEBUG.
#define MOE_ASSERT(condition) assert(condition)

namespace moe::inline MOE_ABI {

/// A matrix, a plan or a routing whose sizes do not fit the others.
/// The message reads `<function>: <quantity>: expected <n>, got <m>`.
class ShapeError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A file that is not what it claims to be. The message names file, tensor and offset;
/// the fields are for programs.
class FormatError : public std::runtime_error {
 public:
  FormatError(const std::string& file, const std::string& tensor, std::uint64_t offset,
              const std::string& problem)
      : std::runtime_error(message(file, tensor, offset, problem)),
        file_(file),
        tensor_(tensor),
        offset_(offset) {}

  const std::string& file() const noexcept { return file_; }
  /// Empty where the error lies outside any one tensor.
  const std::string& tensor() const noexcept { return tensor_; }
  /// Bytes from the start of the file.
  std::uint64_t offset() const noexcept { return offset_; }

 private:
  static std::string message(const std::string& file, const std::string& tensor,
                             std::uint64_t offset, const std::string& problem) {
    std::string text = file;
    if (!tensor.empty()) text += ": tensor '" + tensor + "'";
    return text + ": at byte " + std::to_string(offset) + ": " + problem;
  }

  std::string file_;
  std::string tensor_;
  std::uint64_t offset_;
};

namespace detail {

/// A text made of parts: strings as they are, integers in decimal. A chain of `"literal" + string`
/// would set off a false warning of g++ 12 (-Wrestrict, at -O3) in the user's build.
template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::string text;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(part)>>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (add(parts), ...);
  return text;
}

[[noreturn]] MOE_COLD inline void throw_shape(const char* where, const char* quantity,
                                              std::ptrdiff_t expected, std::ptrdiff_t got) {
  throw ShapeError(text_of(where, ": ", quantity, ": expected ", expected, ", got ", got));
}

[[noreturn]] MOE_COLD inline void throw_invalid(const char* where, const std::string& problem) {
  throw std::invalid_argument(text_of(where, ": ", problem));
}

/// Throws ShapeError unless `got == expected`.
inline void check_size(const char* where, const char* quantity, std::ptrdiff_t expected,
                       std::ptrdiff_t got) {
  if (expected != got) [[unlikely]]
    throw_shape(where, quantity, expected, got);
}

/// Throws ShapeError unless a matrix is (rows, cols).
template <class M>
void check_shape(const char* where, const char* rows_name, const char* cols_name, const M& matrix,
                 std::ptrdiff_t rows, std::ptrdiff_t cols) {
  check_size(where, rows_name, rows, matrix.rows());
  check_size(where, cols_name, cols, matrix.cols());
}

/// Throws std::invalid_argument unless `condition`. Always inline: where g++ 12 knows sizes that
/// are refused here, it would otherwise warn (-Warray-bounds, at -O3) of what they would lead to.
MOE_ALWAYS_INLINE void check(bool condition, const char* where, const char* problem) {
  if (!condition) [[unlikely]]
    throw_invalid(where, problem);
}

/// a * b for sizes that are not negative.
///
/// Throws  std::invalid_argument if it does not fit.
inline std::ptrdiff_t product(const char* where, std::ptrdiff_t a, std::ptrdiff_t b) {
  check(b == 0 || a <= std::numeric_limits<std::ptrdiff_t>::max() / b, where,
        "the sizes are too large");
  return a * b;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
