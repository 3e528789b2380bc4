// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Reading safetensors files: 8 bytes of little-endian header length, a JSON header, raw row-major
// little-endian data. (optional: needs nlohmann_json)
//
// Source  The format's own description, https://github.com/huggingface/safetensors.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/types.hpp"
#include "moe/io/json.hpp"
#include "moe/io/mapped_file.hpp"

namespace moe::inline MOE_ABI::io {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

/// Element types that are read.
enum class Dtype { f64, f32, f16, bf16, i64, i32, u8, f8_e4m3, f8_e5m2 };

/// Whether the elements are floating-point numbers, not integers.
constexpr bool is_floating_point(Dtype dtype) noexcept {
  return dtype != Dtype::i64 && dtype != Dtype::i32 && dtype != Dtype::u8;
}

namespace detail {

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  std::size_t bytes;
};

inline constexpr std::array<DtypeInfo, 9> dtypes{{{Dtype::f64, "F64", 8},
                                                  {Dtype::f32, "F32", 4},
                                                  {Dtype::f16, "F16", 2},
                                                  {Dtype::bf16, "BF16", 2},
                                                  {Dtype::i64, "I64", 8},
                                                  {Dtype::i32, "I32", 4},
                                                  {Dtype::u8, "U8", 1},
                                                  {Dtype::f8_e4m3, "F8_E4M3", 1},
                                                  {Dtype::f8_e5m2, "F8_E5M2", 1}}};

inline const DtypeInfo& info(Dtype dtype) noexcept {
  return dtypes[static_cast<std::size_t>(dtype)];
}

}  // namespace detail

/// One tensor of a file, where it lies. Data may be unaligned.
///
/// Shapes  data holds the product of `shape` elements (1 for a scalar, whose shape is empty).
struct TensorView {
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;
  std::span<const std::byte> data;
  std::uint64_t offset = 0;  ///< of data, from the start of the file

  Index size() const noexcept {
    return static_cast<Index>(data.size() / detail::info(dtype).bytes);
  }
};

/// A mapped file and its checked header. Copies share the mapping.
class SafetensorsFile {
 public:
  /// The longest header that is read, as in the format's own implementation.
  static constexpr std::uint64_t max_header_bytes = 100'000'000;

  /// Throws  std::system_error if the file cannot be read; FormatError if the header is cut short,
  ///         absurdly long or no JSON of the format's form, a name occurs twice, a dtype is not one
  ///         of Dtype, or the tensors do not cover the data area exactly once each.
  explicit SafetensorsFile(std::string path) : file_(std::move(path)) { parse(); }

  const std::string& path() const noexcept { return file_.path(); }
  const MappedFile& mapped() const noexcept { return file_; }
  /// The header's `__metadata__`.
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// The header as it stands in the file.
  std::string_view header_text() const noexcept {
    return {reinterpret_cast<const char*>(file_.bytes().data()) + 8,
            static_cast<std::size_t>(data_offset_ - 8)};
  }
  /// All tensors, by name.
  const std::map<std::string, TensorView, std::less<>>& tensors() const noexcept {
    return tensors_;
  }

 private:
  using Json = nlohmann::json;

  [[noreturn]] MOE_COLD void fail(std::uint64_t offset, const std::string& problem,
                                  const std::string& tensor = {}) const {
    throw FormatError(path(), tensor, offset, problem);
  }

  void parse() {
    const std::span<const std::byte> bytes = file_.bytes();
    if (bytes.size() < 8) fail(bytes.size(), "the file ends within the header length");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    if (length > max_header_bytes)
      fail(0, moe::detail::text_of("a header of ", length, " bytes is absurd"));
    if (length > bytes.size() - 8)
      fail(bytes.size(),
           moe::detail::text_of("the file ends within its header of ", length, " bytes"));
    data_ = bytes.subspan(8 + static_cast<std::size_t>(length));
    data_offset_ = 8 + length;

    const Json header = detail::parse_json(
        {reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<std::size_t>(length)}, path(),
        8);
    if (!header.is_object()) fail(8, "the header is not a JSON object");
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__") {
        parse_metadata(value);
      } else {
        tensors_.emplace(name, parse_tensor(name, value));
      }
    }
    check_coverage();
  }

  void parse_metadata(const Json& value) {
    if (!value.is_object()) fail(8, "__metadata__ is not a JSON object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string())
        fail(8, moe::detail::text_of("__metadata__ entry '", key, "' is not a string"));
      metadata_.emplace(key, text.get<std::string>());
    }
  }

  TensorView parse_tensor(const std::string& name, const Json& value) const {
    const auto field = [&](const char* key) -> const Json& {
      if (!value.is_object() || !value.contains(key))
        fail(8, std::string("the header has no '") + key + "'", name);
      return value.at(key);
    };
    const Json& dtype = field("dtype");
    const Json& shape = field("shape");
    const Json& offsets = field("data_offsets");
    if (value.size() != 3) fail(8, "the header has fields beside dtype, shape, data_offsets", name);

    TensorView tensor;
    const auto* const known =
        std::find_if(detail::dtypes.begin(), detail::dtypes.end(),
                     [&](const detail::DtypeInfo& i) { return dtype == std::string(i.name); });
    if (known == detail::dtypes.end())
      fail(8, moe::detail::text_of("dtype ", detail::printed_json(dtype), " is not supported"),
           name);
    tensor.dtype = known->dtype;

    if (!shape.is_array()) fail(8, "shape is not an array", name);
    std::uint64_t bytes = known->bytes;
    for (const Json& extent : shape) {
      if (!extent.is_number_unsigned())
        fail(8, moe::detail::text_of("shape holds ", detail::printed_json(extent)), name);
      const auto n = extent.get<std::uint64_t>();
      if (n > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()) ||
          (n != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / n))
        fail(8, moe::detail::text_of("shape ", detail::printed_json(shape), " overflows"), name);
      bytes *= n;
      tensor.shape.push_back(static_cast<Index>(n));
    }

    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      fail(8,
           moe::detail::text_of("data_offsets ", detail::printed_json(offsets),
                                " are not two positions"),
           name);
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    if (begin > end || end > data_.size())
      fail(data_offset_,
           moe::detail::text_of("data_offsets ", detail::printed_json(offsets),
                                " lie outside the data area of ", data_.size(), " bytes"),
           name);
    if (end - begin != bytes)
      fail(data_offset_ + begin,
           moe::detail::text_of("data_offsets span ", end - begin, " bytes, dtype and shape need ",
                                bytes),
           name);
    tensor.data =
        data_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    tensor.offset = data_offset_ + begin;
    return tensor;
  }

  /// Tensors must neither overlap nor leave gaps: a gap hides data, or betrays a broken header.
  void check_coverage() const {
    std::vector<std::pair<const TensorView*, const std::string*>> order;
    for (const auto& [name, tensor] : tensors_) order.emplace_back(&tensor, &name);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return std::pair(a.first->offset, a.first->data.size()) <
             std::pair(b.first->offset, b.first->data.size());
    });
    std::uint64_t end = data_offset_;
    for (const auto& [tensor, name] : order) {
      if (tensor->offset < end) fail(tensor->offset, "overlaps another tensor", *name);
      if (tensor->offset > end)
        fail(end, moe::detail::text_of("a gap of ", tensor->offset - end, " bytes comes before it"),
             *name);
      end = tensor->offset + tensor->data.size();
    }
    if (end != data_offset_ + data_.size())
      fail(end,
           moe::detail::text_of(data_offset_ + data_.size() - end, " bytes belong to no tensor"));
  }

  MappedFile file_;
  std::span<const std::byte> data_;
  std::uint64_t data_offset_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace moe::inline MOE_ABI::io
