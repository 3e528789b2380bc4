// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Writing safetensors files. (optional: needs nlohmann_json)
//
// Source  The format's own description, https://github.com/huggingface/safetensors.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI::io {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

/// Collects tensors, then gives the bytes of a file of them. A name that is added again replaces
/// the tensor that had it.
class SafetensorsWriter {
 public:
  void metadata(const std::string& key, const std::string& value) {
    header_["__metadata__"][key] = value;
  }

  /// `bytes` are the elements, row-major and little-endian, `dtype` their type's name: "F32".
  void add(const std::string& name, const char* dtype, const std::vector<Index>& shape,
           std::string_view bytes) {
    header_[name] = {{"dtype", dtype},
                     {"shape", shape},
                     {"data_offsets", {data_.size(), data_.size() + bytes.size()}}};
    data_ += bytes;
  }

  /// An F32 tensor of two dimensions.
  void add(const std::string& name, const Matrix<float>& matrix) {
    add(name, "F32", {matrix.rows(), matrix.cols()}, bytes_of(matrix));
  }

  /// An F32 tensor of one dimension.
  void add_vector(const std::string& name, const Matrix<float>& column) {
    add(name, "F32", {column.size()}, bytes_of(column));
  }

  /// To be changed before the bytes are asked for.
  nlohmann::json& header() noexcept { return header_; }
  const nlohmann::json& header() const noexcept { return header_; }

  /// Header length, header, filled up with spaces so that data begin at a multiple of 8, data.
  std::string bytes() const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = header.size();
    std::string result(sizeof(length), '\0');
    std::memcpy(result.data(), &length, sizeof(length));
    return result.append(header).append(data_);
  }

 private:
  static std::string_view bytes_of(const Matrix<float>& matrix) {
    return {reinterpret_cast<const char*>(matrix.data()),
            static_cast<std::size_t>(matrix.size()) * sizeof(float)};
  }

  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

}  // namespace moe::inline MOE_ABI::io
