// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Reading GGUF files: metadata, tensors by name.
//
// Source  The format's own description, ggml's docs/gguf.md.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/gguf_blocks.hpp"
#include "moe/io/mapped_file.hpp"

namespace moe::inline MOE_ABI::io {

static_assert(std::endian::native == std::endian::little, "GGUF data is little-endian");

/// A value of a file's metadata. Of arrays the length alone is kept.
struct GgufArray {
  std::uint64_t length = 0;
};
using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string, GgufArray>;

/// One tensor of a file, where it lies.
///
/// Shapes  [outputs, inner] of a matrix, as it is written elsewhere; the files have them reversed.
struct GgufTensor {
  GgufType type = GgufType::f32;
  std::vector<Index> shape;
  std::span<const std::byte> data;
  std::uint64_t offset = 0;  ///< of data, from the start of its file
  std::size_t part = 0;      ///< which file of a model that is split has it

  Index inner() const noexcept { return shape.empty() ? 1 : shape.back(); }
  /// All dimensions but the last one together.
  Index rows() const noexcept {
    Index product = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) product *= shape[i];
    return product;
  }
  std::size_t row_bytes() const noexcept {
    const detail::GgufTypeInfo& info = detail::gguf_type(type);
    return static_cast<std::size_t>(inner() / info.values * info.bytes);
  }
  const std::byte* row(Index r) const noexcept {
    return data.data() + static_cast<std::size_t>(r) * row_bytes();
  }
  /// The values of one row, as the type defines them.
  ///
  /// Shapes  to (inner).
  void decode_row(Index r, float* to) const noexcept {
    const detail::GgufTypeInfo& info = detail::gguf_type(type);
    const std::byte* block = row(r);
    for (Index k = 0; k < inner(); k += info.values, block += info.bytes)
      detail::decode_block(type, block, to + k);
  }
};

/// A mapped file and its checked header, or the files that a large model is split into: the first
/// one's name is given, "<name>-00001-of-00003.gguf", the others lie beside it. Copies share the
/// mappings.
class GgufFile {
 public:
  /// Throws  std::system_error if a file cannot be read; FormatError if it is no GGUF file of
  ///         version 2 or 3, is cut short, has a name twice, a size that makes no sense, a tensor
  ///         of a type that is not one of GgufType, or one that leads beyond its end, or if it is a
  ///         later part of a model, or a part of another.
  explicit GgufFile(const std::string& path) {
    metadata_ = read_part(path);
    const std::uint64_t parts = split_number(metadata_, "split.count");
    if (split_number(metadata_, "split.no") != 0)
      fail(0, "is a later part of a model: the first one has what all need");
    for (std::uint64_t part = 1; part < parts; ++part) {
      const auto metadata = read_part(part_path(path, part, parts));
      if (split_number(metadata, "split.no") != part ||
          split_number(metadata, "split.count") != parts)
        fail(0, moe::detail::text_of("is not part ", part + 1, " of ", parts));
    }
  }

  const std::string& path() const noexcept { return files_.front().path(); }
  /// Every file that was opened, the first part first.
  std::vector<std::string> files() const {
    std::vector<std::string> all;
    for (const MappedFile& file : files_) all.push_back(file.path());
    return all;
  }
  /// The file that has a tensor.
  const std::string& path_of(const GgufTensor& tensor) const noexcept {
    return files_[tensor.part].path();
  }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const noexcept {
    return metadata_;
  }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const noexcept {
    return tensors_;
  }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  /// Throws  FormatError naming the tensor if there is none of that name.
  const GgufTensor& tensor(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw FormatError(path(), std::string(name), 0, "is missing");
    return found->second;
  }

 private:
  using Metadata = std::map<std::string, GgufValue, std::less<>>;

  /// Of the file that is being read.
  [[noreturn]] MOE_COLD void fail(std::uint64_t offset, const std::string& problem,
                                  const std::string& tensor = {}) const {
    throw FormatError(files_.back().path(), tensor, offset, problem);
  }

  /// Zero, where there is no such entry.
  std::uint64_t split_number(const Metadata& metadata, std::string_view key) const {
    constexpr std::uint64_t most = 99'999;  // Names have five digits.
    const auto found = metadata.find(key);
    if (found == metadata.end()) return 0;
    const auto* const number = std::get_if<std::uint64_t>(&found->second);
    if (number == nullptr || *number > most) fail(0, moe::detail::text_of(key, " makes no sense"));
    return *number;
  }

  std::string part_path(const std::string& path, std::uint64_t part, std::uint64_t parts) const {
    const auto ending = [&](std::uint64_t i) {
      const auto digits = [](std::uint64_t number) {
        std::string text = std::to_string(number);
        return std::string(5 - text.size(), '0') + text;
      };
      return "-" + digits(i + 1) + "-of-" + digits(parts) + ".gguf";
    };
    if (!path.ends_with(ending(0)))
      fail(0,
           moe::detail::text_of("is the first of ", parts, " parts, but its name does not end in ",
                                ending(0), ", which tells the others'"));
    return path.substr(0, path.size() - ending(0).size()) + ending(part);
  }

  template <class Number>
  Number read() {
    Number number{};
    std::memcpy(&number, take(sizeof(Number)).data(), sizeof(Number));
    return number;
  }

  std::span<const std::byte> take(std::uint64_t count) {
    const std::span<const std::byte> bytes = files_.back().bytes();
    if (count > bytes.size() - at_) fail(bytes.size(), "the file ends within its header");
    const auto result = bytes.subspan(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return result;
  }

  std::string read_text() {
    const auto length = read<std::uint64_t>();
    const std::span<const std::byte> bytes = take(length);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // Types of metadata.
  static constexpr std::uint32_t text_type = 8;
  static constexpr std::uint32_t array_type = 9;

  /// Bytes of a number of this type, 0 if it is none.
  static std::uint64_t size_of(std::uint32_t type) noexcept {
    constexpr std::uint64_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < std::size(sizes) ? sizes[type] : 0;
  }

  GgufValue read_value(std::uint32_t type, int depth) {
    switch (type) {
      case 0:
        return std::uint64_t{read<std::uint8_t>()};
      case 1:
        return std::int64_t{read<std::int8_t>()};
      case 2:
        return std::uint64_t{read<std::uint16_t>()};
      case 3:
        return std::int64_t{read<std::int16_t>()};
      case 4:
        return std::uint64_t{read<std::uint32_t>()};
      case 5:
        return std::int64_t{read<std::int32_t>()};
      case 6:
        return static_cast<double>(read<float>());
      case 7:
        return read<std::uint8_t>() != 0;
      case text_type:
        return read_text();
      case array_type:
        return read_array(depth);
      case 10:
        return read<std::uint64_t>();
      case 11:
        return read<std::int64_t>();
      case 12:
        return read<double>();
      default:
        fail(at_, moe::detail::text_of("metadata of type ", type, " is not known"));
    }
  }

  GgufValue read_array(int depth) {
    if (depth == 0) fail(at_, "arrays of metadata are nested too deeply");
    const auto type = read<std::uint32_t>();
    const auto length = read<std::uint64_t>();
    // Every element takes a byte at least: no more are read than there are.
    if (length > files_.back().bytes().size() - at_)
      fail(at_, "an array of metadata leads beyond the file");
    if (const std::uint64_t bytes = size_of(type); bytes != 0) {
      take(length * bytes);
    } else {
      for (std::uint64_t i = 0; i < length; ++i) read_value(type, depth - 1);
    }
    return GgufArray{length};
  }

  /// Adds a file's tensors, and gives its metadata.
  Metadata read_part(const std::string& path) {
    files_.emplace_back(path);
    const std::span<const std::byte> bytes = files_.back().bytes();
    if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0)
      fail(0, "is no GGUF file: it does not begin with 'GGUF'");
    at_ = 4;
    const auto version = read<std::uint32_t>();
    if (version != 2 && version != 3)
      fail(4, moe::detail::text_of("version ", version, " is not read, 2 and 3 are"));
    const auto tensors = read<std::uint64_t>();
    const auto entries = read<std::uint64_t>();
    Metadata metadata;
    for (std::uint64_t i = 0; i < entries; ++i) {
      const std::uint64_t begin = at_;
      std::string key = read_text();
      const auto type = read<std::uint32_t>();
      GgufValue value = read_value(type, 4);
      if (!metadata.emplace(key, std::move(value)).second)
        fail(begin, moe::detail::text_of("the metadata has '", key, "' twice"));
    }
    for (std::uint64_t i = 0; i < tensors; ++i) read_tensor();
    place_data(metadata);
    return metadata;
  }

  void read_tensor() {
    const std::uint64_t begin = at_;
    std::string name = read_text();
    const auto dimensions = read<std::uint32_t>();
    if (dimensions == 0 || dimensions > 4)
      fail(begin, moe::detail::text_of("has ", dimensions, " dimensions"), name);
    GgufTensor tensor;
    std::uint64_t values = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      const auto size = read<std::uint64_t>();
      if (size == 0 || size > std::numeric_limits<std::uint32_t>::max() ||
          values > (std::uint64_t{1} << 60U) / size)
        fail(begin, moe::detail::text_of("has a dimension of ", size), name);
      values *= size;
      tensor.shape.insert(tensor.shape.begin(), static_cast<Index>(size));
    }
    const auto type = read<std::uint32_t>();
    const detail::GgufTypeInfo* const info = detail::gguf_type(type);
    if (info == nullptr) fail(begin, moe::detail::text_of("type ", type, " is not read"), name);
    tensor.type = info->type;
    if (tensor.inner() % info->values != 0)
      fail(begin,
           moe::detail::text_of("rows of ", tensor.inner(), " values are no whole blocks of ",
                                info->name),
           name);
    tensor.offset = read<std::uint64_t>();  // From the start of the data, for now.
    tensor.part = files_.size() - 1;
    if (!tensors_.emplace(name, std::move(tensor)).second)
      fail(begin, "there are two tensors of this name", name);
  }

  void place_data(const Metadata& metadata) {
    std::uint64_t alignment = 32;
    if (const auto found = metadata.find("general.alignment"); found != metadata.end()) {
      const auto* const number = std::get_if<std::uint64_t>(&found->second);
      if (number == nullptr || *number == 0 || *number > (1U << 20U) || *number % 8 != 0)
        fail(0, "general.alignment makes no sense");
      alignment = *number;
    }
    const std::span<const std::byte> bytes = files_.back().bytes();
    const std::uint64_t start = (at_ + alignment - 1) / alignment * alignment;
    for (auto& [name, tensor] : tensors_) {
      if (tensor.part + 1 != files_.size()) continue;
      const std::uint64_t size = static_cast<std::uint64_t>(tensor.rows()) * tensor.row_bytes();
      const std::uint64_t offset = tensor.offset;
      if (start > bytes.size() || offset > bytes.size() - start ||
          size > bytes.size() - start - offset)
        fail(start, moe::detail::text_of("its ", size, " bytes lead beyond the file"), name);
      if (offset % alignment != 0) fail(start + offset, "is not aligned", name);
      tensor.offset = start + offset;
      tensor.data =
          bytes.subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(size));
    }
  }

  std::vector<MappedFile> files_;
  std::size_t at_ = 0;
  Metadata metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace moe::inline MOE_ABI::io
