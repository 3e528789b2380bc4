// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the README shows is what the project holds.
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

namespace readme_test {

std::string read(const std::string& path) {
  std::ifstream file(MOE_SOURCE "/" + path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Readme, ShowsTheQuickStartAsItIs) {
  const std::string program = read("examples/01_quick_start.cpp");
  const std::size_t code = program.find("#include");
  ASSERT_NE(code, std::string::npos);
  EXPECT_NE(read("README.md").find("```cpp\n" + program.substr(code) + "```\n"), std::string::npos);
}

TEST(Readme, ShowsTheConsumersAsTheyAre) {
  const std::string readme = read("README.md");
  for (const std::string line : {"find_package(moe 0.1 REQUIRED", "FetchContent_MakeAvailable(moe)",
                                 "target_link_libraries(", "moe::moe"})
    EXPECT_NE(readme.find(line), std::string::npos) << line;
}

TEST(Readme, NamesTheCommands) {
  const std::string readme = read("README.md");
  for (const std::string command : {"examples/run.sh", "tests/run.sh", "benchmarks/run.sh"})
    EXPECT_NE(readme.find(command), std::string::npos) << command;
}

}  // namespace readme_test
