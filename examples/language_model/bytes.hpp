// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Text as tokens, and text from files and into them.
#pragma once

#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "language_model/model.hpp"

namespace language_model {

/// One token a byte. `what` begins the message of an error.
///
/// Throws  std::invalid_argument naming the first byte that the vocabulary cannot hold.
std::vector<Token> to_tokens(std::string_view text, Index vocab_size, const std::string& what);

/// Throws  std::system_error naming the path if the file cannot be read.
std::string read_file(const std::string& path);

/// Waits until what was written to a file, or the names in a folder, are on the disk.
///
/// Throws  std::system_error naming the path.
void sync(const std::string& path);

/// Whether both paths name one file that exists.
bool is_same_file(const std::string& a, const std::string& b);

/// A file that appears under its name only when it is complete. Until then it has a name of its own
/// beside it, and it goes away if it is never committed. A link is followed; what is no ordinary
/// file (a pipe, a device) is written to directly.
class OutputFile {
 public:
  /// Throws  std::system_error naming the path if the file cannot be created.
  explicit OutputFile(const std::string& path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  /// Writes everything and gives the file its name.
  ///
  /// Throws  std::system_error naming the path.
  void commit(std::string_view text);

 private:
  std::string path_;
  std::string partial_path_;
  std::ofstream stream_;
  bool is_committed_ = false;
};

}  // namespace language_model
