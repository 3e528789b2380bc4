// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See bytes.hpp.
#include "language_model/bytes.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace language_model {
namespace {

[[noreturn]] void fail(const std::string& path, const char* problem) {
  const int code = errno != 0 ? errno : EIO;
  throw std::system_error(code, std::generic_category(), path + ": " + problem);
}

}  // namespace

std::vector<Token> to_tokens(std::string_view text, Index vocab_size, const std::string& what) {
  std::vector<Token> tokens;
  tokens.reserve(text.size());
  for (const char c : text) {
    const Token token = static_cast<unsigned char>(c);
    if (token >= vocab_size)
      throw std::invalid_argument(what + ": the vocabulary cannot hold the byte " +
                                  std::to_string(token) + " at position " +
                                  std::to_string(tokens.size()) + ": it has " +
                                  std::to_string(vocab_size) + " tokens");
    tokens.push_back(token);
  }
  return tokens;
}

std::string read_file(const std::string& path) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(path, "cannot be opened");
  if (std::filesystem::is_directory(path)) {
    errno = EISDIR;
    fail(path, "cannot be read");
  }
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (stream.bad()) fail(path, "cannot be read");
  return text;
}

void sync(const std::string& path) {
  errno = 0;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(path, "cannot be opened");
  const int result = fsync(file);
  const int code = errno;
  close(file);
  errno = code;
  // EINVAL: nothing that can be kept, such as a folder on some file systems.
  if (result != 0 && code != EINVAL) fail(path, "cannot be written");
}

bool is_same_file(const std::string& a, const std::string& b) {
  std::error_code missing;
  return std::filesystem::equivalent(a, b, missing) && !missing;
}

OutputFile::OutputFile(const std::string& path)
    : path_(std::filesystem::weakly_canonical(path).string()) {
  // Renaming would find this out too late.
  if (std::filesystem::is_directory(path_)) {
    errno = EISDIR;
    fail(path_, "cannot be written");
  }
  if (std::filesystem::exists(path_) && !std::filesystem::is_regular_file(path_)) {
    partial_path_ = path_;
  } else {
    // A new name, so that no other file is touched.
    partial_path_ = path_ + ".part-XXXXXX";
    const int file = mkstemp(partial_path_.data());
    if (file < 0) fail(path_, "cannot be written");
    const mode_t mask = umask(0);
    umask(mask);
    fchmod(file, 0666 & ~mask);  // As an ordinary new file has it.
    close(file);
  }
  errno = 0;
  stream_.open(partial_path_, std::ios::binary | std::ios::trunc);
  if (!stream_) fail(path_, "cannot be written");
}

OutputFile::~OutputFile() {
  if (!is_committed_ && partial_path_ != path_) std::remove(partial_path_.c_str());
}

void OutputFile::commit(std::string_view text) {
  errno = 0;
  stream_.write(text.data(), static_cast<std::streamsize>(text.size()));
  stream_.close();
  if (!stream_) fail(path_, "cannot be written");
  if (partial_path_ != path_) {
    sync(partial_path_);  // Or a loss of power could leave the name without the bytes.
    std::filesystem::rename(partial_path_, path_);
  }
  is_committed_ = true;
}

}  // namespace language_model
