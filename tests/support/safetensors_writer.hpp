// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Files for tests: a small writer of safetensors, and folders that go away.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/core/types.hpp>

namespace test_support {

/// A new folder, removed with everything in it at the end of the scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "moe-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const noexcept { return path_; }

  /// Writes a file and gives its path.
  std::string write(const std::string& name, std::string_view bytes) const {
    std::ofstream stream(file(name), std::ios::binary);
    stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!stream) throw std::runtime_error("cannot write " + file(name));
    return file(name);
  }

 private:
  std::string path_;
};

/// A file of the given header text and data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

/// Collects tensors, then gives the bytes of a file of them.
class SafetensorsWriter {
 public:
  void metadata(const std::string& key, const std::string& value) {
    header_["__metadata__"][key] = value;
  }

  void add(const std::string& name, const char* dtype, const std::vector<moe::Index>& shape,
           std::string_view bytes) {
    header_[name] = {{"dtype", dtype},
                     {"shape", shape},
                     {"data_offsets", {data_.size(), data_.size() + bytes.size()}}};
    data_ += bytes;
  }

  /// An F32 tensor.
  void add(const std::string& name, const moe::Matrix<float>& matrix) {
    add(name, "F32", {matrix.rows(), matrix.cols()}, bytes_of(matrix));
  }
  void add_vector(const std::string& name, const moe::Matrix<float>& column) {
    add(name, "F32", {column.rows()}, bytes_of(column));
  }

  nlohmann::json& header() noexcept { return header_; }
  const nlohmann::json& header() const noexcept { return header_; }
  std::string bytes() const { return safetensors_bytes(header_.dump(), data_); }

 private:
  static std::string_view bytes_of(const moe::Matrix<float>& matrix) {
    return {reinterpret_cast<const char*>(matrix.data()),
            static_cast<std::size_t>(matrix.size()) * sizeof(float)};
  }

  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

}  // namespace test_support
