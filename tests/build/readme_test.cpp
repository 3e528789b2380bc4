// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the README shows is what the project holds.
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

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
  const std::pair<std::string, std::vector<std::string>> shown[] = {
      {"find_package",
       {"find_package(moe 0.1 REQUIRED", "COMPONENTS io", "moe::io", "moe::instances"}},
      {"fetch_content",
       {"FetchContent_Declare(moe SOURCE_DIR ", "FetchContent_MakeAvailable(moe)",
        "PRIVATE moe::moe)"}},
      {"add_subdirectory", {"add_subdirectory", "PRIVATE moe::moe)"}}};
  for (const auto& [way, lines] : shown) {
    const std::string consumer = read("tests/build/consumers/" + way + "/CMakeLists.txt");
    for (const std::string& line : lines) {
      EXPECT_NE(consumer.find(line), std::string::npos) << way << ": " << line;
      EXPECT_NE(readme.find(line), std::string::npos) << line;
    }
  }
}

TEST(Readme, NamesTheCommands) {
  const std::string readme = read("README.md");
  for (const std::string command : {"examples/run.sh", "tests/run.sh", "benchmarks/run.sh"})
    EXPECT_NE(readme.find(command), std::string::npos) << command;
}

}  // namespace readme_test
