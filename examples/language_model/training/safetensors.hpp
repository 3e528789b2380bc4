// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Writing safetensors files.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/core/types.hpp>

namespace language_model::training {

/// Collects F32 tensors, then gives the bytes of a file of them.
class SafetensorsFile {
 public:
  void metadata(const std::string& key, const std::string& value) {
    header_["__metadata__"][key] = value;
  }

  void add(const std::string& name, const std::vector<moe::Index>& shape, const float* values,
           std::size_t count) {
    const std::size_t size = count * sizeof(float);
    header_[name] = {
        {"dtype", "F32"}, {"shape", shape}, {"data_offsets", {data_.size(), data_.size() + size}}};
    data_.append(reinterpret_cast<const char*>(values), size);
  }

  /// Header length, header filled up with spaces to a multiple of 8, data.
  std::string bytes() const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = header.size();
    std::string result(sizeof(length), '\0');
    std::memcpy(result.data(), &length, sizeof(length));
    return result.append(header).append(data_);
  }

 private:
  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

}  // namespace language_model::training
