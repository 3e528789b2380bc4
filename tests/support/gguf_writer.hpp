// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// GGUF files made by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/io/gguf.hpp>

namespace test_support {

/// A GGUF file, piece by piece.
class GgufWriter {
 public:
  template <class Number>
  static std::string bytes_of(Number number) {
    return {reinterpret_cast<const char*>(&number), sizeof(number)};
  }
  static std::string text_of(const std::string& text) {
    return bytes_of(std::uint64_t{text.size()}) + text;
  }

  void entry(const std::string& key, const std::string& value) {
    entries_ += text_of(key) + bytes_of(std::uint32_t{8}) + text_of(value);
    ++count_;
  }
  void entry(const std::string& key, std::uint32_t value) {
    entries_ += text_of(key) + bytes_of(std::uint32_t{4}) + bytes_of(value);
    ++count_;
  }
  void entry(const std::string& key, float value) {
    entries_ += text_of(key) + bytes_of(std::uint32_t{6}) + bytes_of(value);
    ++count_;
  }
  /// `shape` as elsewhere, the inner dimension last.
  void tensor(const std::string& name, const std::vector<moe::Index>& shape, moe::io::GgufType type,
              const std::string& bytes) {
    tensors_ += text_of(name) + bytes_of(static_cast<std::uint32_t>(shape.size()));
    for (std::size_t i = shape.size(); i > 0; --i)
      tensors_ += bytes_of(static_cast<std::uint64_t>(shape[i - 1]));
    tensors_ += bytes_of(static_cast<std::uint32_t>(type)) +
                bytes_of(static_cast<std::uint64_t>(data_.size()));
    data_ += bytes;
    data_.resize((data_.size() + 31) / 32 * 32, '\0');
    ++tensor_count_;
  }
  void floats(const std::string& name, const std::vector<moe::Index>& shape,
              const moe::Matrix<float>& values) {
    tensor(name, shape, moe::io::GgufType::f32,
           {reinterpret_cast<const char*>(values.data()),
            static_cast<std::size_t>(values.size()) * sizeof(float)});
  }
  std::string bytes() const {
    std::string all = "GGUF" + bytes_of(std::uint32_t{3}) + bytes_of(tensor_count_) +
                      bytes_of(count_) + entries_ + tensors_;
    all.resize((all.size() + 31) / 32 * 32, '\0');
    return all + data_;
  }

 private:
  std::string entries_;
  std::string tensors_;
  std::string data_;
  std::uint64_t count_ = 0;
  std::uint64_t tensor_count_ = 0;
};

}  // namespace test_support
