// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Fields of a model's config.json, with errors that name the field. (optional: needs nlohmann_json)
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/json.hpp"

namespace moe::inline MOE_ABI::io {

/// Reads a JSON object that must outlive it. `source` is the file that errors name.
///
/// Throws  FormatError from every function that finds a field missing, of another type or absurd.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& json, std::string source)
      : json_(json), source_(std::move(source)) {
    if (!json_.is_object()) fail("the configuration is no JSON object");
  }

  const std::string& source() const noexcept { return source_; }

  /// False where the field is absent or null.
  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  /// True where the field is there and null.
  bool is_null(const char* key) const { return json_.contains(key) && json_.at(key).is_null(); }

  const nlohmann::json& operator[](const char* key) const {
    if (!has(key)) fail(moe::detail::text_of("the configuration has no '", key, "'"));
    return json_.at(key);
  }

  /// Value is bool, an integer, a floating-point type or std::string.
  template <class Value>
  Value get(const char* key) const {
    const nlohmann::json& value = (*this)[key];
    check(std::is_same_v<Value, bool>       ? value.is_boolean()
          : std::is_integral_v<Value>       ? value.is_number_integer()
          : std::is_floating_point_v<Value> ? value.is_number()
                                            : value.is_string(),
          key);
    return value.get<Value>();
  }

  template <class Value>
  Value get(const char* key, Value otherwise) const {
    return has(key) ? get<Value>(key) : otherwise;
  }

  /// A size: 1 to 2^31.
  Index positive(const char* key) const {
    const auto value = get<Index>(key);
    check(value > 0 && value <= (Index{1} << 31), key);
    return value;
  }

  /// Fails, showing the field's value, unless `condition`.
  void check(bool condition, const char* key) const {
    if (!condition)
      fail(moe::detail::text_of("'", key, "' is ", detail::printed_json((*this)[key])));
  }

  [[noreturn]] MOE_COLD void fail(const std::string& problem) const {
    throw FormatError(source_, "", 0, problem);
  }

 private:
  const nlohmann::json& json_;
  std::string source_;
};

}  // namespace moe::inline MOE_ABI::io
