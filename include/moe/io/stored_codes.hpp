// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Matrices that checkpoints store in eight and four bits. (optional: needs nlohmann_json)
//
// Source  DeepSeek-V3, `inference/fp8_cast_bf16.py`; gpt-oss, `torch/weights.py`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_matrix.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensors.hpp"

namespace moe::inline MOE_ABI::io::detail {

enum class ExpertPart { gate, up, down };

/// The formats of ours that an expert's matrices are stored in, none where they are in another.
struct StoredParts {
  std::optional<WeightFormat> gate;
  std::optional<WeightFormat> up;
  std::optional<WeightFormat> down;

  /// The expert's, if all are in formats of ours, gate and up in the same.
  std::optional<ExpertFormat> format() const {
    if (!up || !down || gate != up) return std::nullopt;
    return ExpertFormat{*up, *down};
  }
  /// A part for which there is none.
  ExpertPart part_without() const {
    if (!up) return ExpertPart::up;
    return down ? ExpertPart::gate : ExpertPart::down;
  }
};

/// The weights of an output as Scalar.
template <class Scalar>
void widen_output(const MatrixLayout& layout, const CodedOutput& output, Scalar* to) {
  std::vector<float> weights(static_cast<std::size_t>(layout.inner));
  moe::detail::decode_output(layout, output, weights.data());
  std::copy(weights.begin(), weights.end(), to);
}

inline bool is_fp8(const Tensors& tensors, const std::string& name) {
  if (!tensors.contains(name)) return false;
  const Dtype dtype = tensors.tensor(name).dtype;
  return dtype == Dtype::f8_e4m3 || dtype == Dtype::f8_e5m2;
}

/// A matrix [outputs, inner] of eight-bit floats, times the scales of its blocks of 128 by 128,
/// which the tensor "<name>_scale_inv" has; those at the edges may be smaller.
class Fp8Matrix {
 public:
  static constexpr Index block = 128;

  static std::string scales_of(const std::string& name) { return name + "_scale_inv"; }

  /// Throws  FormatError naming the tensor if one is missing or has another shape or type, or a
  ///         scale is negative or not finite.
  Fp8Matrix(const Tensors& tensors, const std::string& name, Index outputs, Index inner)
      : tensors_(tensors), name_(name), inner_(inner), weights_(tensors.tensor(name)) {
    tensors.require(name, std::vector<Index>{outputs, inner});
    if (!is_fp8(tensors, name))
      throw FormatError(tensors.file_of(name), name, weights_.offset,
                        "is not of eight bits, as other experts are");
    scales_ = tensors.matrix<float>(scales_of(name), (outputs + block - 1) / block,
                                    (inner + block - 1) / block);
    const TensorView& scales = tensors.tensor(scales_of(name));
    for (Index i = 0; i < scales_.size(); ++i)
      if (!std::isfinite(scales_.data()[i]) || scales_.data()[i] < 0)
        throw FormatError(
            tensors.file_of(scales_of(name)), scales_of(name),
            scales.offset + static_cast<std::uint64_t>(i) * detail::info(scales.dtype).bytes,
            "a scale is negative or not finite");
  }

  static WeightFormat format_of(Dtype dtype) noexcept {
    return {dtype == Dtype::f8_e4m3 ? WeightCode::fp8_e4m3 : WeightCode::fp8_e5m2, block};
  }
  WeightFormat format() const noexcept { return format_of(weights_.dtype); }

  /// Throws  FormatError naming tensor and offset if a weight is not finite, or its scale is zero
  ///         and it is not.
  CodedOutput output(Index o) const {
    CodedOutput result;
    for (Index g = 0; g < scales_.cols(); ++g) result.scales.push_back(scales_(o / block, g));
    result.codes.reserve(static_cast<std::size_t>(inner_));
    const auto fail = [&](Index k, const char* problem) {
      throw FormatError(tensors_.file_of(name_), name_,
                        weights_.offset + static_cast<std::uint64_t>(o * inner_ + k), problem);
    };
    for (Index k = 0; k < inner_; ++k) {
      const auto code =
          static_cast<std::uint8_t>(weights_.data[static_cast<std::size_t>(o * inner_ + k)]);
      if ((code & 0x7fU) != 0 && scales_(o / block, k / block) == 0)
        fail(k, "the scale of a weight is zero");
      result.codes.push_back(code);
    }
    const Index bad = moe::detail::first_not_finite(MatrixLayout(format(), 1, inner_), result);
    if (bad < inner_) fail(bad, "a weight is not finite");
    return result;
  }

  template <class Scalar>
  Matrix<Scalar> widened() const {
    const Index outputs = weights_.shape[0];
    const MatrixLayout layout(format(), outputs, inner_);
    Matrix<Scalar> result(outputs, inner_);
    for (Index o = 0; o < outputs; ++o)
      widen_output(layout, output(o), moe::detail::row_data(result, o));
    return result;
  }

 private:
  const Tensors& tensors_;
  std::string name_;
  Index inner_;
  const TensorView& weights_;
  Matrix<float> scales_;
};

/// The matrices [outputs, inner] of all experts in mxfp4: "<name>_blocks" [E, outputs, inner / 32,
/// 16] has two codes a byte, the first one low; "<name>_scales" [E, outputs, inner / 32].
class Mxfp4Matrices {
 public:
  static constexpr Index group = 32;

  static std::string blocks_of(const std::string& name) { return name + "_blocks"; }
  static std::string scales_of(const std::string& name) { return name + "_scales"; }

  /// Throws  FormatError naming the tensor if one is missing or has another shape or type, or inner
  ///         is no multiple of 32.
  Mxfp4Matrices(const Tensors& tensors, std::string name, Index experts, Index outputs, Index inner)
      : tensors_(tensors), name_(std::move(name)), outputs_(outputs), groups_(inner / group) {
    const std::string blocks = blocks_of(name_);
    if (inner % group != 0)
      throw FormatError(tensors.file_of(blocks), blocks, tensors.tensor(blocks).offset,
                        "the inner size is no multiple of 32, which mxfp4 needs");
    tensors.require(blocks, {experts, outputs, groups_, group / 2});
    tensors.require(scales_of(name_), {experts, outputs, groups_});
    for (const std::string& tensor : {blocks, scales_of(name_)})
      if (tensors.tensor(tensor).dtype != Dtype::u8)
        throw FormatError(tensors.file_of(tensor), tensor, tensors.tensor(tensor).offset,
                          "expected dtype U8");
    blocks_ = tensors.tensor(blocks).data.data();
    scales_ = tensors.tensor(scales_of(name_)).data.data();
  }

  static constexpr WeightFormat format() noexcept { return {WeightCode::mxfp4, group}; }

  /// Throws  FormatError naming tensor and offset if a scale is NaN or makes a weight infinite.
  CodedOutput output(Index e, Index o) const {
    CodedOutput result;
    const Index first = (e * outputs_ + o) * groups_;
    const auto fail = [&](const std::string& tensor, Index at, const char* problem) {
      throw FormatError(tensors_.file_of(tensor), tensor,
                        tensors_.tensor(tensor).offset + static_cast<std::uint64_t>(at), problem);
    };
    for (Index g = 0; g < groups_; ++g) {
      const auto scale = static_cast<std::uint8_t>(scales_[first + g]);
      if (scale == 255) fail(scales_of(name_), first + g, "a scale is NaN");
      result.scales.push_back(e8m0_to_float(scale));
      const std::byte* const block = blocks_ + (first + g) * (group / 2);
      for (Index i = 0; i < group / 2; ++i) {
        const auto byte = static_cast<unsigned>(block[i]);
        result.codes.push_back(static_cast<std::uint16_t>(byte & 15U));
        result.codes.push_back(static_cast<std::uint16_t>(byte >> 4U));
      }
    }
    const Index inner = groups_ * group;
    const Index bad = moe::detail::first_not_finite(MatrixLayout(format(), 1, inner), result);
    if (bad < inner) fail(blocks_of(name_), (first * group + bad) / 2, "a weight is not finite");
    return result;
  }

  /// Matrix [outputs, inner] of one expert.
  template <class Scalar>
  Matrix<Scalar> widened(Index e) const {
    const MatrixLayout layout(format(), outputs_, groups_ * group);
    Matrix<Scalar> result(outputs_, groups_ * group);
    for (Index o = 0; o < outputs_; ++o)
      widen_output(layout, output(e, o), moe::detail::row_data(result, o));
    return result;
  }

 private:
  const Tensors& tensors_;
  std::string name_;
  Index outputs_;
  Index groups_;
  const std::byte* blocks_ = nullptr;
  const std::byte* scales_ = nullptr;
};

}  // namespace moe::inline MOE_ABI::io::detail
