// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// JSON from files that nobody vouches for. (optional: needs nlohmann_json)
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"

namespace moe::inline MOE_ABI::io::detail {

/// Containers within containers that a text may hold. Headers and configurations need five; deeper
/// ones could overflow the stack of whatever walks them.
inline constexpr int max_json_depth = 32;

/// Parses a text in which no object has a key twice. `offset` is where the text begins in `file`.
///
/// Throws  FormatError naming the file if the text is no JSON, is nested too deeply, or has a key
///         twice; of a key of the outermost object, as the tensor's name.
inline nlohmann::json parse_json(std::string_view text, const std::string& file,
                                 std::uint64_t offset) {
  using Json = nlohmann::json;
  using Event = Json::parse_event_t;
  const auto fail = [&](const std::string& problem, const std::string& tensor = {}) {
    throw FormatError(file, tensor, offset, problem);
  };
  // The parser takes both for ends or beginnings.
  if (text.find('\0') != std::string_view::npos || text.starts_with("\xef\xbb\xbf"))
    fail("the text is not JSON: it holds a NUL or a byte order mark");
  std::vector<std::set<std::string, std::less<>>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Event event, Json& value) {
    if (depth > max_json_depth) fail("the JSON is nested too deeply");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      const auto key = value.get<std::string>();
      if (keys.size() == 1) fail("the name occurs twice", key);
      fail(moe::detail::text_of("the key '", key, "' occurs twice"));
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    fail(moe::detail::text_of("the text is not JSON: ", error.what()));
  }
  return {};
}

/// A value for a message, cut to a readable length; nested containers by their kind alone.
inline std::string printed_json(const nlohmann::json& value) {
  if (value.is_structured())
    for (const nlohmann::json& element : value)
      if (element.is_structured()) return value.type_name();
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace moe::inline MOE_ABI::io::detail
