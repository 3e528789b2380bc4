// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The quantised blocks of GGUF files.
//
// Source  ggml's definitions of its types, ggml/src/ggml-common.h and ggml-quants.c.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/small_floats.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/coded_matrix.hpp"

namespace moe::inline MOE_ABI::io {

/// Types of tensors that are read; the numbers are the files'.
enum class GgufType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q8_0 = 8,
  q4_k = 12,
  q6_k = 14,
  bf16 = 30,
  mxfp4 = 39,
};

namespace detail {

struct GgufTypeInfo {
  GgufType type;
  std::string_view name;
  Index values;  // of a block
  Index bytes;
};

inline constexpr std::array<GgufTypeInfo, 8> gguf_types{{
    {GgufType::f32, "F32", 1, 4},
    {GgufType::f16, "F16", 1, 2},
    {GgufType::q4_0, "Q4_0", 32, 18},
    {GgufType::q8_0, "Q8_0", 32, 34},
    {GgufType::q4_k, "Q4_K", 256, 144},
    {GgufType::q6_k, "Q6_K", 256, 210},
    {GgufType::bf16, "BF16", 1, 2},
    {GgufType::mxfp4, "MXFP4", 32, 17},
}};

/// Null if the type is not read.
inline const GgufTypeInfo* gguf_type(std::uint32_t number) noexcept {
  for (const GgufTypeInfo& info : gguf_types)
    if (static_cast<std::uint32_t>(info.type) == number) return &info;
  return nullptr;
}
inline const GgufTypeInfo& gguf_type(GgufType type) noexcept {
  return *gguf_type(static_cast<std::uint32_t>(type));
}

inline float half_at(const std::byte* p) noexcept {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  return half_to_float(bits);
}
inline unsigned byte_at(const std::byte* p, Index i) noexcept {
  return static_cast<unsigned>(p[i]);
}

/// Scale and minimum of group `i` of 8 of a q4_k block: six bits each, packed into 12 bytes.
struct ScaleAndMinimum {
  unsigned scale;
  unsigned minimum;
};
inline ScaleAndMinimum q4_k_group(const std::byte* packed, Index i) noexcept {
  if (i < 4) return {byte_at(packed, i) & 63U, byte_at(packed, i + 4) & 63U};
  const unsigned low = byte_at(packed, i + 4);
  return {(low & 15U) | ((byte_at(packed, i - 4) >> 6U) << 4U),
          (low >> 4U) | ((byte_at(packed, i) >> 6U) << 4U)};
}

/// The values of one block.
inline void decode_block(GgufType type, const std::byte* block, float* values) noexcept {
  switch (type) {
    case GgufType::f32:
      std::memcpy(values, block, 4);
      return;
    case GgufType::f16:
      *values = half_at(block);
      return;
    case GgufType::bf16: {
      std::uint16_t bits = 0;
      std::memcpy(&bits, block, 2);
      *values = bfloat16_to_float(bits);
      return;
    }
    case GgufType::q4_0: {  // d, then 16 bytes: values 0 .. 15 low, 16 .. 31 high
      const float d = half_at(block);
      for (Index i = 0; i < 16; ++i) {
        const unsigned byte = byte_at(block, 2 + i);
        values[i] = d * static_cast<float>(static_cast<int>(byte & 15U) - 8);
        values[16 + i] = d * static_cast<float>(static_cast<int>(byte >> 4U) - 8);
      }
      return;
    }
    case GgufType::q8_0: {
      const float d = half_at(block);
      for (Index i = 0; i < 32; ++i)
        values[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
      return;
    }
    case GgufType::mxfp4: {
      const float d = e8m0_to_float(static_cast<std::uint8_t>(block[0]));
      for (Index i = 0; i < 16; ++i) {
        const auto byte = static_cast<std::uint8_t>(block[1 + i]);
        values[i] = d * e2m1_to_float(byte);
        values[16 + i] = d * e2m1_to_float(static_cast<std::uint8_t>(byte >> 4U));
      }
      return;
    }
    case GgufType::q4_k: {  // d, dmin, 12 bytes of scales and minima, 4 bits of 256 values
      const float d = half_at(block);
      const float least = half_at(block + 2);
      for (Index g = 0; g < 8; ++g) {
        const ScaleAndMinimum group = q4_k_group(block + 4, g);
        const float scale = d * static_cast<float>(group.scale);
        const float minimum = least * static_cast<float>(group.minimum);
        // Groups 2 j and 2 j + 1 share 32 bytes.
        const std::byte* const codes = block + 16 + 32 * (g / 2);
        for (Index i = 0; i < 32; ++i) {
          const unsigned code = g % 2 == 0 ? byte_at(codes, i) & 15U : byte_at(codes, i) >> 4U;
          values[32 * g + i] = scale * static_cast<float>(code) - minimum;
        }
      }
      return;
    }
    case GgufType::q6_k: {  // 4 low bits, 2 high bits, 16 scales of 8 bits, d
      const float d = half_at(block + 208);
      for (Index half = 0; half < 2; ++half) {
        const std::byte* const low = block + 64 * half;
        const std::byte* const high = block + 128 + 32 * half;
        const std::byte* const scales = block + 192 + 8 * half;
        for (Index i = 0; i < 128; ++i) {
          const Index quarter = i / 32;
          const Index at = i % 32;
          const unsigned byte = byte_at(low, at + 32 * (quarter % 2));
          const unsigned four = quarter < 2 ? byte & 15U : byte >> 4U;
          const unsigned two = (byte_at(high, at) >> (2 * static_cast<unsigned>(quarter))) & 3U;
          const int code = static_cast<int>(four | (two << 4U)) - 32;
          const auto scale = static_cast<std::int8_t>(scales[i / 16]);
          values[128 * half + i] =
              d * static_cast<float>(static_cast<int>(scale)) * static_cast<float>(code);
        }
      }
      return;
    }
  }
}

/// The format of ours that has the same grid as a type, if there is one.
inline std::optional<WeightFormat> same_grid(GgufType type) noexcept {
  switch (type) {
    case GgufType::q4_0:
      return WeightFormat{WeightCode::int4, 32};
    case GgufType::q8_0:
      return WeightFormat{WeightCode::int8, 32};
    case GgufType::mxfp4:
      return WeightFormat{WeightCode::mxfp4, 32};
    case GgufType::bf16:
      return WeightFormat{WeightCode::bfloat16, 0};
    case GgufType::f16:
      return WeightFormat{WeightCode::half, 0};
    default:
      return std::nullopt;
  }
}

/// The codes of one output, of a type that has a grid of ours.
inline CodedOutput codes_of(GgufType type, const std::byte* row, Index inner) {
  CodedOutput output;
  output.codes.resize(static_cast<std::size_t>(inner));
  const GgufTypeInfo& info = gguf_type(type);
  for (Index begin = 0; begin < inner; begin += info.values, row += info.bytes) {
    std::uint16_t* const codes = output.codes.data() + begin;
    if (info.values == 1) {
      std::memcpy(codes, row, 2);
      continue;
    }
    if (type == GgufType::q8_0) {
      output.scales.push_back(half_at(row));
      for (Index i = 0; i < 32; ++i) codes[i] = static_cast<std::uint16_t>(byte_at(row, 2 + i));
      continue;
    }
    const Index lead = type == GgufType::q4_0 ? 2 : 1;
    output.scales.push_back(
        type == GgufType::q4_0 ? half_at(row) : e8m0_to_float(static_cast<std::uint8_t>(row[0])));
    for (Index i = 0; i < 16; ++i) {
      const unsigned byte = byte_at(row, lead + i);
      codes[i] = static_cast<std::uint16_t>(byte & 15U);
      codes[16 + i] = static_cast<std::uint16_t>(byte >> 4U);
    }
  }
  return output;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI::io
