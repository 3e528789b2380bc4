// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The shape of include/moe: who may include whom, and what every header has.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace layering_test {

namespace fs = std::filesystem;

const fs::path include_folder = MOE_SOURCE "/include";

/// A folder may include itself and those of lower rank. Of equal rank, none includes another.
const std::map<std::string, int> rank_of{
    {"core", 0},    {"kernels", 1},       {"parallel", 1},      {"routing", 2},
    {"experts", 2}, {"losses", 3},        {"layer", 4},         {"telemetry", 5},
    {"fwd.hpp", 5}, {"instances.inl", 5}, {"instances.hpp", 6}, {"moe.hpp", 7},
    {"io", 8},      {"distributed", 8},   {"instances.cpp", 8}};

/// "core" of moe/core/types.hpp, "fwd.hpp" of moe/fwd.hpp.
std::string part_of(const std::string& header) {
  const std::string below = header.substr(header.find('/') + 1);
  return below.substr(0, below.find('/'));
}

/// Empty if `from` may include `to`, both as written in an #include.
std::string objection(const std::string& from, const std::string& to) {
  const std::string a = part_of(from);
  const std::string b = part_of(to);
  if (rank_of.count(a) == 0) return a + " is no known folder";
  if (rank_of.count(b) == 0) return b + " is no known folder";
  if (a == "kernels" && b == "core") {
    const bool outside_region = from.ends_with("/isa.hpp") || from.ends_with("/dispatch.hpp") ||
                                from.ends_with("/levels.hpp");
    // Headers without code that could be emitted for a higher level.
    const bool plain = to == "moe/core/config.hpp" || to == "moe/core/numeric.hpp" ||
                       to == "moe/core/panels.hpp" || to == "moe/core/small_floats.hpp" ||
                       to == "moe/core/weight_code.hpp";
    const bool is_outside = to == "moe/core/contracts.hpp" || to == "moe/core/weight_format.hpp";
    if (!plain && !(outside_region && is_outside)) return "kernels may not include " + to;
  }
  if (a == b || rank_of.at(b) < rank_of.at(a)) return {};
  return a + " must not include " + b;
}

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Every header, as written in an #include.
std::vector<std::string> headers() {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(include_folder))
    if (entry.is_regular_file())
      found.push_back(fs::relative(entry.path(), include_folder).string());
  std::sort(found.begin(), found.end());
  return found;
}

/// The headers of the project that a text includes.
std::vector<std::string> includes(const std::string& text) {
  static const std::regex pattern("#include [\"<](moe/[^\">]+)[\">]");
  std::vector<std::string> found;
  for (std::sregex_iterator at(text.begin(), text.end(), pattern), end; at != end; ++at)
    found.push_back((*at)[1]);
  return found;
}

TEST(Layering, TheRuleItself) {
  EXPECT_EQ(objection("moe/layer/sparse_moe.hpp", "moe/core/types.hpp"), "");
  EXPECT_EQ(objection("moe/kernels/isa.hpp", "moe/core/contracts.hpp"), "");
  EXPECT_EQ(objection("moe/io/checkpoint.hpp", "moe/fwd.hpp"), "");
  EXPECT_NE(objection("moe/core/types.hpp", "moe/layer/sparse_moe.hpp"), "");
  EXPECT_NE(objection("moe/routing/plan.hpp", "moe/experts/gather.hpp"), "");
  EXPECT_NE(objection("moe/kernels/avx2.hpp", "moe/core/types.hpp"), "");
  EXPECT_NE(objection("moe/moe.hpp", "moe/io/tensors.hpp"), "");
  EXPECT_NE(objection("moe/elsewhere/a.hpp", "moe/core/types.hpp"), "");
}

/// The part of a text between the first of two words and the last of the other; empty without.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const std::size_t from = text.find(begin);
  const std::size_t to = text.rfind(end);
  return from == std::string::npos || to == std::string::npos ? "" : text.substr(from, to - from);
}

TEST(Regions, IncludeBodiesOnly) {
  int regions = 0;
  for (const std::string& header : headers()) {
    const std::string region =
        between(read(include_folder / header), "\nMOE_TARGET_BEGIN(", "\nMOE_TARGET_END");
    if (region.empty()) continue;
    ++regions;
    static const std::regex include("#include ([^\n]*)");
    for (std::sregex_iterator at(region.begin(), region.end(), include), end; at != end; ++at)
      EXPECT_TRUE((*at)[1].str().ends_with(".inl\"")) << header << " includes " << (*at)[1];
    EXPECT_EQ(region.find("#pragma omp"), std::string::npos) << header;
    EXPECT_EQ(region.find("#ifdef"), std::string::npos) << header;
  }
  EXPECT_EQ(regions, 5);
}

TEST(Regions, BodiesCallNothingFromOutside) {
  static const std::set<std::string> types{"ptrdiff_t", "byte",    "int8_t",
                                           "uint8_t",   "int32_t", "intptr_t"};
  int bodies = 0;
  for (const std::string& header : headers()) {
    if (!header.ends_with(".inl") || part_of(header) != "kernels") continue;
    ++bodies;
    const std::string text = read(include_folder / header);
    EXPECT_EQ(text.find("#include"), std::string::npos) << header;
    EXPECT_EQ(text.find("Eigen"), std::string::npos) << header;
    EXPECT_EQ(text.find("static "), std::string::npos) << header;
    static const std::regex name("std::(\\w+)");
    for (std::sregex_iterator at(text.begin(), text.end(), name), end; at != end; ++at)
      EXPECT_EQ(types.count((*at)[1]), 1U) << header << ": " << (*at)[1];
  }
  EXPECT_EQ(bodies, 9);
}

TEST(Parallel, IsTheOnlyFolderThatStartsThreads) {
  for (const std::string& header : headers()) {
    if (part_of(header) == "parallel") continue;
    EXPECT_EQ(read(include_folder / header).find("#pragma omp"), std::string::npos) << header;
  }
}

TEST(Layering, EveryIncludeKeepsToIt) {
  const std::vector<std::string> all = headers();
  ASSERT_GT(all.size(), 30U);
  for (const std::string& from : all) {
    for (const std::string& to : includes(read(include_folder / from))) {
      EXPECT_EQ(objection(from, to), "") << from << " includes " << to;
      EXPECT_TRUE(fs::exists(include_folder / to)) << from << " includes " << to;
    }
  }
}

/// The kernels of one level, and what chooses among them.
bool is_of_levels(const std::string& header) {
  static const std::regex pattern("moe/kernels/(coded/)?(avx2|avx512|neon|scalar|levels)\\.hpp");
  return std::regex_match(header, pattern);
}

TEST(Layering, TheUmbrellaIncludesEverythingButTheOptionalFoldersAndTheLevels) {
  std::vector<std::string> expected;
  for (const std::string& header : headers())
    if (rank_of.at(part_of(header)) < rank_of.at("moe.hpp") && header.ends_with(".hpp") &&
        !is_of_levels(header))
      expected.push_back(header);
  EXPECT_EQ(includes(read(include_folder / "moe/moe.hpp")), expected);
}

TEST(Layering, EveryHeaderHasItsHeadAndAReadableLength) {
  for (const std::string& header : headers()) {
    const std::string text = read(include_folder / header);
    EXPECT_TRUE(
        text.starts_with("// SPDX-FileCopyrightText: The moe authors\n"
                         "// SPDX-License-Identifier: Apache-2.0\n//\n// "))
        << header;
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 400) << header;
    EXPECT_TRUE(!header.ends_with(".hpp") || text.find("\n#pragma once\n") != std::string::npos)
        << header;
  }
}

}  // namespace layering_test
