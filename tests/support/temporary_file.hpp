// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A file of a test's own.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

namespace test_support {

/// A fixture with a path that no other test or process has, and where nothing is left after the
/// test.
class TemporaryFile : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  /// Writes the file anew: what is mapped of an earlier one stays.
  void write(const std::string& bytes) const {
    std::filesystem::remove(path_);
    std::ofstream(path_, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  std::string path_ = [] {
    const auto* const test = testing::UnitTest::GetInstance()->current_test_info();
    const std::string name =
        "moe_" + std::to_string(getpid()) + "_" + test->test_suite_name() + "_" + test->name();
    return (std::filesystem::temp_directory_path() / name).string();
  }();
};

}  // namespace test_support
