// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <sys/stat.h>
#include <system_error>

#include <gtest/gtest.h>

#include <moe/io/mapped_file.hpp>

#include "support/safetensors_writer.hpp"

namespace mapped_file_test {

std::string complaint(const std::string& path) {
  try {
    const moe::io::MappedFile file(path);
  } catch (const std::system_error& error) {
    return error.what();
  }
  return "";
}

TEST(MappedFile, ShowsTheBytesOfTheFile) {
  const test_support::TemporaryFolder folder;
  moe::io::MappedFile copy(folder.write("empty", ""));
  EXPECT_TRUE(copy.bytes().empty());
  {
    const moe::io::MappedFile file(folder.write("text", "abc"));
    ASSERT_EQ(file.bytes().size(), 3U);
    EXPECT_EQ(static_cast<char>(file.bytes()[2]), 'c');
    copy = file;
  }
  EXPECT_EQ(static_cast<char>(copy.bytes()[0]), 'a');
  EXPECT_EQ(copy.path(), folder.file("text"));
}

TEST(MappedFile, NamesWhatCannotBeRead) {
  const test_support::TemporaryFolder folder;
  const std::string missing = folder.file("missing");
  EXPECT_NE(complaint(missing).find(missing), std::string::npos);
  EXPECT_NE(complaint(folder.path()).find(folder.path()), std::string::npos);
  EXPECT_NE(complaint("/dev/null").find("/dev/null"), std::string::npos);
  const std::string pipe = folder.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_NE(complaint(pipe).find(pipe), std::string::npos);
}

}  // namespace mapped_file_test
