// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A parser under libFuzzer: the one whose name the environment variable MOE_FUZZ has.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "fuzz/parsers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Parser& parser = []() -> const fuzz::Parser& {
    const char* const name = std::getenv("MOE_FUZZ");
    return fuzz::parser_of(name == nullptr ? "" : name);
  }();
  fuzz::is_read(parser, {reinterpret_cast<const char*>(data), size});
  return 0;
}
