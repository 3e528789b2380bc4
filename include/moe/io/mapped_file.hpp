// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A file mapped into memory, read only (POSIX).
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <span>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"

namespace moe::inline MOE_ABI::io {

/// Copies share the mapping and the open file. A file that is cut short while it is mapped cannot
/// be read safely, so replace files by rename.
class MappedFile {
 public:
  /// Throws  std::system_error naming the path if the file cannot be opened, is no regular file, or
  ///         cannot be mapped.
  explicit MappedFile(std::string path) : path_(std::move(path)) {
    // Without blocking: opening a pipe would wait for its writer.
    const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) fail(errno);
    struct stat status = {};
    int error = ::fstat(descriptor, &status) != 0 ? errno : 0;
    if (error == 0 && S_ISDIR(status.st_mode)) error = EISDIR;
    if (error == 0 && !S_ISREG(status.st_mode)) error = EINVAL;
    const auto size = static_cast<std::size_t>(status.st_size);
    void* address = nullptr;
    if (error == 0 && size > 0) {
      address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (address == MAP_FAILED) error = errno;
    }
    if (error != 0) {
      ::close(descriptor);
      fail(error);
    }
    descriptor_ = std::shared_ptr<const int>(new int(descriptor), [](const int* d) {
      ::close(*d);
      delete d;
    });
    if (size > 0) {
      mapping_ = std::shared_ptr<const std::byte>(
          static_cast<const std::byte*>(address),
          [size](const std::byte* p) { ::munmap(const_cast<std::byte*>(p), size); });
      size_ = size;
    }
  }

  const std::string& path() const noexcept { return path_; }
  std::span<const std::byte> bytes() const noexcept { return {mapping_.get(), size_}; }

  /// Reads from the file that was mapped, also if another one has its name by now.
  ///
  /// Throws  std::system_error; FormatError if the file ends before.
  void read(std::uint64_t offset, std::span<std::byte> to) const {
    while (!to.empty()) {
      const ssize_t count = ::pread(*descriptor_, to.data(), to.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(errno);
      if (count == 0) throw FormatError(path_, "", offset, "the file was cut short meanwhile");
      offset += static_cast<std::uint64_t>(count);
      to = to.subspan(static_cast<std::size_t>(count));
    }
  }

 private:
  [[noreturn]] MOE_COLD void fail(int error) const {
    throw std::system_error(error, std::generic_category(), path_);
  }

  std::string path_;
  std::shared_ptr<const int> descriptor_;
  std::shared_ptr<const std::byte> mapping_;
  std::size_t size_ = 0;
};

}  // namespace moe::inline MOE_ABI::io
