// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Tensors by name, from one safetensors file or a sharded set. (optional: needs nlohmann_json)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/io/json.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_ABI::io {
namespace detail {

/// Converts every element of `tensor` to Scalar: floating-point numbers to floating-point numbers,
/// integers to integers.
///
/// Values  false if the tensor is of the other kind, or an integer does not fit.
template <class Scalar>
bool convert(const TensorView& tensor, Scalar* out) {
  if (std::is_floating_point_v<Scalar> != is_floating_point(tensor.dtype)) return false;
  const std::byte* const data = tensor.data.data();
  bool fits = true;
  const auto each = [&]<class Stored>(Stored /*type*/, auto&& widen) {
    for (Index i = 0; i < tensor.size(); ++i) {
      Stored value;
      std::memcpy(&value, data + static_cast<std::size_t>(i) * sizeof(Stored), sizeof(Stored));
      if constexpr (std::is_integral_v<Scalar> && std::is_integral_v<Stored>)
        fits = fits && std::in_range<Scalar>(value);
      out[i] = static_cast<Scalar>(widen(value));
    }
    return fits;
  };
  const auto same = [](auto value) { return value; };
  if constexpr (std::is_floating_point_v<Scalar>) {
    switch (tensor.dtype) {
      case Dtype::f64:
        return each(double{}, same);
      case Dtype::f32:
        return each(float{}, same);
      case Dtype::f16:
        return each(std::uint16_t{}, half_to_float);
      case Dtype::f8_e4m3:
        return each(std::uint8_t{}, e4m3_to_float);
      case Dtype::f8_e5m2:
        return each(std::uint8_t{}, e5m2_to_float);
      default:
        return each(std::uint16_t{}, bfloat16_to_float);
    }
  } else {
    switch (tensor.dtype) {
      case Dtype::i64:
        return each(std::int64_t{}, same);
      case Dtype::i32:
        return each(std::int32_t{}, same);
      default:
        return each(std::uint8_t{}, same);
    }
  }
}

inline std::string printed_shape(const std::vector<Index>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace detail

/// All tensors of a checkpoint. Nothing is read before it is asked for.
class Tensors {
 public:
  /// Opens a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds an index or
  /// else exactly one `.safetensors` file.
  ///
  /// Throws  std::system_error or std::invalid_argument naming the path if there is no such thing;
  ///         FormatError if a file is broken, or a shard lacks a tensor that the index promises.
  static Tensors open(const std::string& path) {
    namespace fs = std::filesystem;
    if (!fs::is_directory(path))
      return path.ends_with(".json") ? open_index(path) : open_file(path);
    std::vector<std::string> indexes;
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(path)) {
      const std::string file = entry.path().string();
      if (file.ends_with(".safetensors.index.json")) indexes.push_back(file);
      if (file.ends_with(".safetensors")) files.push_back(file);
    }
    if (indexes.size() == 1) return open_index(indexes.front());
    if (indexes.empty() && files.size() == 1) return open_file(files.front());
    throw std::invalid_argument(path +
                                ": expected one .safetensors.index.json or one .safetensors "
                                "file, found " +
                                std::to_string(indexes.size()) + " and " +
                                std::to_string(files.size()));
  }

  /// What was opened: the file, or the index.
  const std::string& path() const noexcept { return path_; }
  /// Metadata of the file, or of all shards together, the first one's entry winning.
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

  bool contains(std::string_view name) const { return entries_.find(name) != entries_.end(); }

  std::vector<std::string> names() const { return names_below(""); }

  /// The names that begin with `prefix`.
  std::vector<std::string> names_below(std::string_view prefix) const {
    std::vector<std::string> found;
    for (auto entry = entries_.lower_bound(prefix);
         entry != entries_.end() && entry->first.starts_with(prefix); ++entry)
      found.push_back(entry->first);
    return found;
  }

  /// Throws  FormatError naming the tensor if there is none of that name.
  const TensorView& tensor(std::string_view name) const { return *entry(name).tensor; }

  /// The file that the tensor is in: what offsets count from.
  ///
  /// Throws  as `tensor`.
  const std::string& file_of(std::string_view name) const { return entry(name).file->path(); }

  /// Throws  FormatError naming the tensor if it is missing or has too few dimensions.
  Index dimension(std::string_view name, std::size_t i) const {
    const Entry& found = entry(name);
    if (i >= found.tensor->shape.size())
      throw FormatError(found.file->path(), std::string(name), found.tensor->offset,
                        "has too few dimensions");
    return found.tensor->shape[i];
  }

  /// Every file that was opened: the index, where there is one, and all shards.
  std::vector<std::string> files() const {
    std::vector<std::string> all{path_};
    for (const auto& file : files_)
      if (file->path() != path_) all.push_back(file->path());
    return all;
  }

  /// Throws  FormatError naming the tensor if it is missing or has another shape than [rows, cols];
  ///         [rows] passes where cols is 1, and [] where rows is 1, too.
  void require(std::string_view name, Index rows, Index cols) const {
    const Entry& found = entry(name);
    const std::vector<Index>& shape = found.tensor->shape;
    const std::vector<Index> expected{rows, cols};
    const bool is_vector = cols == 1 && shape == std::vector<Index>{rows};
    const bool is_scalar = cols == 1 && rows == 1 && shape.empty();
    if (shape != expected && !is_vector && !is_scalar) fail_shape(found, name, expected);
  }

  /// A tensor as a matrix; a vector becomes one column. Scalar is of the kind of the tensor: float
  /// or double for F64, F32, F16 and BF16, an integer type for I64, I32 and U8.
  ///
  /// Shapes  as for `require`.
  /// Values  widened exactly; F64 is rounded where Scalar is float.
  /// Throws  FormatError naming the tensor if it is missing, has another shape or is of the other
  ///         kind, or an integer does not fit.
  template <class Scalar>
  Matrix<Scalar> matrix(std::string_view name, Index rows, Index cols) const {
    require(name, rows, cols);
    const Entry& found = entry(name);
    Matrix<Scalar> result(rows, cols);
    if (!detail::convert(*found.tensor, result.data()))
      fail_kind(found, name, std::is_floating_point_v<Scalar>);
    return result;
  }

  template <class Scalar>
  Vector<Scalar> vector(std::string_view name, Index size) const {
    return matrix<Scalar>(name, size, 1).col(0);
  }

  /// Throws  FormatError naming the tensor if it is missing or has another shape.
  void require(std::string_view name, const std::vector<Index>& shape) const {
    const Entry& found = entry(name);
    if (found.tensor->shape != shape) fail_shape(found, name, shape);
  }

  /// Throws  FormatError naming the tensor if it is missing or has integers, and the offset of the
  ///         first of its `count` values from `first` on that is not finite in single precision;
  ///         std::invalid_argument if the values lead beyond the tensor.
  void require_finite(std::string_view name, Index first, Index count) const {
    const Entry& found = entry(name);
    const TensorView& tensor = *found.tensor;
    moe::detail::check(first >= 0 && count >= 0 && count <= tensor.size() - first,
                       "Tensors::require_finite", "the values lead beyond the tensor");
    const std::size_t bytes = detail::info(tensor.dtype).bytes;
    constexpr Index block = 1024;
    float values[block];
    TensorView part = tensor;
    for (Index begin = first; begin < first + count; begin += block) {
      const Index here = std::min(block, first + count - begin);
      part.data = tensor.data.subspan(static_cast<std::size_t>(begin) * bytes,
                                      static_cast<std::size_t>(here) * bytes);
      if (!detail::convert(part, values)) fail_kind(found, name, true);
      for (Index i = 0; i < here; ++i)
        if (!std::isfinite(values[i]))
          throw FormatError(found.file->path(), std::string(name),
                            tensor.offset + static_cast<std::uint64_t>(begin + i) * bytes,
                            "a value is not finite in single precision");
    }
  }

  /// Some rows of a tensor of two or more dimensions, all but the last of which count as one.
  ///
  /// Shapes  result (count, shape.back()).
  /// Throws  as `matrix`; std::invalid_argument if the rows lead beyond the tensor.
  template <class Scalar>
  Matrix<Scalar> rows(std::string_view name, const std::vector<Index>& shape, Index first,
                      Index count) const {
    require(name, shape);
    const Entry& found = entry(name);
    const Index cols = shape.back();
    Index all = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) all *= shape[i];
    moe::detail::check(first >= 0 && count >= 0 && first + count <= all, "Tensors::rows",
                       "the rows lead beyond the tensor");
    const auto bytes = static_cast<std::size_t>(cols) * detail::info(found.tensor->dtype).bytes;
    TensorView part = *found.tensor;
    part.shape = {count, cols};
    part.data = part.data.subspan(static_cast<std::size_t>(first) * bytes,
                                  static_cast<std::size_t>(count) * bytes);
    Matrix<Scalar> result(count, cols);
    if (!detail::convert(part, result.data()))
      fail_kind(found, name, std::is_floating_point_v<Scalar>);
    return result;
  }

 private:
  struct Entry {
    const SafetensorsFile* file;
    const TensorView* tensor;
  };

  [[noreturn]] MOE_COLD static void fail_shape(const Entry& found, std::string_view name,
                                               const std::vector<Index>& expected) {
    throw FormatError(found.file->path(), std::string(name), found.tensor->offset,
                      moe::detail::text_of("expected shape ", detail::printed_shape(expected),
                                           ", found ", detail::printed_shape(found.tensor->shape)));
  }

  [[noreturn]] MOE_COLD static void fail_kind(const Entry& found, std::string_view name,
                                              bool is_float) {
    throw FormatError(
        found.file->path(), std::string(name), found.tensor->offset,
        moe::detail::text_of(
            "dtype ", detail::info(found.tensor->dtype).name, " does not fit ",
            is_float ? "a tensor of floating-point numbers" : "the integers that are read"));
  }

  static Tensors open_file(const std::string& path) {
    Tensors tensors(path);
    const SafetensorsFile& file = tensors.add(path);
    for (const auto& [name, tensor] : file.tensors())
      tensors.entries_.emplace(name, Entry{&file, &tensor});
    return tensors;
  }

  static Tensors open_index(const std::string& path) {
    const MappedFile text(path);
    const auto fail = [&](const std::string& problem, const std::string& tensor = {}) {
      throw FormatError(path, tensor, 0, problem);
    };
    const auto* const begin = reinterpret_cast<const char*>(text.bytes().data());
    const nlohmann::json index = detail::parse_json({begin, text.bytes().size()}, path, 0);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      fail("the index has no weight_map");

    Tensors tensors(path);
    std::map<std::string, const SafetensorsFile*> shards;
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    for (const auto& [name, shard] : index["weight_map"].items()) {
      if (!shard.is_string()) fail("the index does not name a file", name);
      const auto file_name = shard.get<std::string>();
      if (file_name.empty() || std::filesystem::path(file_name).filename() != file_name ||
          file_name == ".." || file_name == ".")
        fail(moe::detail::text_of("the index names '", file_name,
                                  "', which is not a file beside it"),
             name);
      const SafetensorsFile*& file = shards[file_name];
      if (file == nullptr) file = &tensors.add((folder / file_name).string());
      const auto found = file->tensors().find(name);
      if (found == file->tensors().end()) fail(moe::detail::text_of("is not in ", file_name), name);
      tensors.entries_.emplace(name, Entry{file, &found->second});
    }
    return tensors;
  }

  explicit Tensors(std::string path) : path_(std::move(path)) {}

  const SafetensorsFile& add(const std::string& path) {
    files_.push_back(std::make_shared<const SafetensorsFile>(path));
    metadata_.insert(files_.back()->metadata().begin(), files_.back()->metadata().end());
    return *files_.back();
  }

  const Entry& entry(std::string_view name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) throw FormatError(path_, std::string(name), 0, "is missing");
    return found->second;
  }

  std::string path_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace moe::inline MOE_ABI::io
