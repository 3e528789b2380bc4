// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/experts/coded_matrix.hpp>
#include <moe/io/gguf.hpp>

#include "support/float_bits.hpp"
#include "support/temporary_file.hpp"

namespace gguf_test {

using moe::Index;
using moe::io::GgufFile;
using moe::io::GgufType;

/// The bytes of a GGUF file, piece by piece.
class Writer {
 public:
  template <class Number>
  Writer& number(Number value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Writer& text(const std::string& value) {
    number(std::uint64_t{value.size()});
    bytes_ += value;
    return *this;
  }
  Writer& raw(const std::string& value) {
    bytes_ += value;
    return *this;
  }
  Writer& head(std::uint64_t tensors, std::uint64_t entries, std::uint32_t version = 3) {
    return raw("GGUF").number(version).number(tensors).number(entries);
  }
  /// Dimensions as the file has them, the inner one first.
  Writer& tensor(const std::string& name, const std::vector<std::uint64_t>& dimensions,
                 std::uint32_t type, std::uint64_t offset) {
    text(name).number(static_cast<std::uint32_t>(dimensions.size()));
    for (const std::uint64_t size : dimensions) number(size);
    return number(type).number(offset);
  }
  Writer& align(std::size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class Gguf : public test_support::TemporaryFile {
 protected:
  GgufFile open(const std::string& bytes) const {
    write(bytes);
    return GgufFile(path_);
  }
  /// What the error says.
  std::string refusal(const std::string& bytes) const {
    try {
      open(bytes);
    } catch (const moe::FormatError& error) {
      return error.what();
    }
    return {};
  }
};

std::string bytes_of(std::initializer_list<int> values) {
  std::string bytes;
  for (const int value : values) bytes += static_cast<char>(value);
  return bytes;
}

std::vector<float> decode(GgufType type, const std::string& block, std::size_t count) {
  std::vector<float> values(count);
  moe::io::detail::decode_block(type, reinterpret_cast<const std::byte*>(block.data()),
                                values.data());
  return values;
}

// 1.5 as a half is 0x3e00, 0.25 is 0x3400, -2 is 0xc000.
TEST_F(Gguf, BlocksOfEightBits) {
  for (int first = 0; first < 256; first += 32) {
    std::string block = bytes_of({0x00, 0x3e});
    for (int i = 0; i < 32; ++i) block += static_cast<char>(first + i);
    const std::vector<float> values = decode(GgufType::q8_0, block, 32);
    for (int i = 0; i < 32; ++i) {
      const int code = first + i < 128 ? first + i : first + i - 256;
      EXPECT_EQ(values[static_cast<std::size_t>(i)], 1.5F * static_cast<float>(code));
    }
  }
}

TEST_F(Gguf, BlocksOfFourBits) {
  std::string block = bytes_of({0x00, 0xc0});
  for (int i = 0; i < 16; ++i) block += static_cast<char>(i + 16 * (15 - i));
  const std::vector<float> values = decode(GgufType::q4_0, block, 32);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)], -2.0F * static_cast<float>(i - 8));
    EXPECT_EQ(values[static_cast<std::size_t>(16 + i)], -2.0F * static_cast<float>(15 - i - 8));
  }
}

TEST_F(Gguf, BlocksOfMxfp4) {
  const float magnitudes[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (const int scale : {0, 1, 126, 127, 128, 254}) {
    std::string block = bytes_of({scale});
    for (int i = 0; i < 16; ++i) block += static_cast<char>(i + 16 * (15 - i));
    const std::vector<float> values = decode(GgufType::mxfp4, block, 32);
    for (int i = 0; i < 16; ++i) {
      const float value = (i < 8 ? 1.0F : -1.0F) * magnitudes[i % 8];
      EXPECT_EQ(values[static_cast<std::size_t>(i)], std::ldexp(value, scale - 127)) << scale;
      EXPECT_EQ(values[static_cast<std::size_t>(31 - i)], std::ldexp(value, scale - 127)) << scale;
    }
  }
  EXPECT_TRUE(std::isnan(decode(GgufType::mxfp4, bytes_of({255}) + std::string(16, 1), 32)[0]));
}

/// All 65536 codes of each: infinite ones and those that are no numbers, too.
TEST_F(Gguf, ValuesOfSixteenBits) {
  for (const GgufType type : {GgufType::f16, GgufType::bf16}) {
    const int exponent_bits = type == GgufType::f16 ? 5 : 8;
    const int fraction_bits = 15 - exponent_bits;
    const unsigned infinity = ((1U << static_cast<unsigned>(exponent_bits)) - 1)
                              << static_cast<unsigned>(fraction_bits);
    for (unsigned code = 0; code < 65536; ++code) {
      const float value = decode(
          type, bytes_of({static_cast<int>(code & 255U), static_cast<int>(code >> 8U)}), 1)[0];
      if ((code & 0x7fffU) > infinity) {
        ASSERT_TRUE(std::isnan(value)) << code;
      } else if ((code & 0x7fffU) == infinity) {
        ASSERT_EQ(value, code < 0x8000U ? HUGE_VALF : -HUGE_VALF) << code;
      } else {
        const double expected = test_support::value_of_bits(code, exponent_bits, fraction_bits);
        ASSERT_EQ(static_cast<double>(value), expected) << code;
        ASSERT_EQ(std::signbit(value), code >= 0x8000U) << code;
      }
    }
  }
}

TEST_F(Gguf, ValuesOfThirtyTwoBits) {
  EXPECT_EQ(decode(GgufType::f32, bytes_of({0x00, 0x00, 0xc0, 0xbf}), 1)[0], -1.5F);
  EXPECT_EQ(decode(GgufType::f32, bytes_of({0x01, 0x00, 0x00, 0x00}), 1)[0], 0x1p-149F);
}

/// Scales of blocks: their halves, and their values.
struct BlockScales {
  std::string bits;
  double first;
  double second = 0;
};

/// A q4_k block of these six-bit scales and minima and four-bit codes.
std::string q4_k(const std::string& of_block, const int (&scales)[8], const int (&minima)[8],
                 const int (&codes)[256]) {
  std::string block = of_block;
  for (int i = 0; i < 4; ++i) block += static_cast<char>(scales[i] + ((scales[4 + i] >> 4) << 6));
  for (int i = 0; i < 4; ++i) block += static_cast<char>(minima[i] + ((minima[4 + i] >> 4) << 6));
  for (int i = 0; i < 4; ++i)
    block += static_cast<char>((scales[4 + i] & 15) + ((minima[4 + i] & 15) << 4));
  for (int pair = 0; pair < 4; ++pair)
    for (int i = 0; i < 32; ++i)
      block += static_cast<char>(codes[64 * pair + i] + (codes[64 * pair + 32 + i] << 4));
  return block;
}

TEST_F(Gguf, SuperBlocksOfFourBits) {
  for (int turn = 0; turn < 64; ++turn) {
    int scales[8];
    int minima[8];
    int codes[256];
    for (int i = 0; i < 8; ++i) {
      scales[i] = (turn + 9 * i) % 64;
      minima[i] = (63 - turn + 7 * i) % 64;
    }
    for (int i = 0; i < 256; ++i) codes[i] = (i * 7 + turn) % 16;
    // Differences of the first are exact; of the others they are rounded, once.
    for (const BlockScales& of_block :
         {BlockScales{bytes_of({0x00, 0x3e, 0x00, 0x34}), 1.5, 0.25},
          BlockScales{bytes_of({0xff, 0x3f, 0xff, 0x07}), 2047 * 0x1p-10, 2047 * 0x1p-24},
          BlockScales{bytes_of({0x01, 0x5c, 0x03, 0x00}), 1025 * 0x1p-2, 3 * 0x1p-24}}) {
      const std::string block = q4_k(of_block.bits, scales, minima, codes);
      ASSERT_EQ(block.size(), 144U);
      const std::vector<float> values = decode(GgufType::q4_k, block, 256);
      for (int i = 0; i < 256; ++i)
        EXPECT_EQ(values[static_cast<std::size_t>(i)],
                  static_cast<float>(of_block.first * scales[i / 32] * codes[i] -
                                     of_block.second * minima[i / 32]));
    }
  }
}

TEST_F(Gguf, SuperBlocksOfSixBits) {
  for (int turn = 0; turn < 64; ++turn) {
    int codes[256];
    for (int i = 0; i < 256; ++i) codes[i] = (i * 13 + turn) % 64;
    std::string low(128, '\0');
    std::string high(64, '\0');
    std::string scales;
    for (int i = 0; i < 16; ++i) scales += static_cast<char>(turn * 4 + i - 128);
    for (int i = 0; i < 256; ++i) {  // Value i of 128: low bits in byte i % 64 of its half.
      const int half = i / 128;
      const int in_half = i % 128;
      const auto at = static_cast<std::size_t>(64 * half + in_half % 64);
      low[at] = static_cast<char>(low[at] | ((codes[i] & 15) << (in_half < 64 ? 0 : 4)));
      const auto high_at = static_cast<std::size_t>(32 * half + in_half % 32);
      high[high_at] = static_cast<char>(high[high_at] | ((codes[i] >> 4) << (in_half / 32 * 2)));
    }
    for (const BlockScales& of_block : {BlockScales{bytes_of({0x00, 0x3e}), 1.5},
                                        BlockScales{bytes_of({0xff, 0x3f}), 2047 * 0x1p-10}}) {
      const std::string block = low + high + scales + of_block.bits;
      ASSERT_EQ(block.size(), 210U);
      const std::vector<float> values = decode(GgufType::q6_k, block, 256);
      for (int i = 0; i < 256; ++i) {
        const auto scale = static_cast<std::int8_t>(scales[static_cast<std::size_t>(i / 16)]);
        EXPECT_EQ(values[static_cast<std::size_t>(i)],
                  static_cast<float>(of_block.first * scale * (codes[i] - 32)));
      }
    }
  }
}

TEST_F(Gguf, CodesOfTheSameGridGiveTheSameValues) {
  for (const GgufType type :
       {GgufType::q4_0, GgufType::q8_0, GgufType::mxfp4, GgufType::bf16, GgufType::f16}) {
    const auto format = moe::io::detail::same_grid(type);
    ASSERT_TRUE(format.has_value());
    constexpr Index inner = 96;
    const auto& info = moe::io::detail::gguf_type(type);
    std::string row;
    for (Index i = 0; i < inner / info.values * info.bytes; ++i)
      row += static_cast<char>(moe::detail::mix_bits(static_cast<std::uint64_t>(i)) % 100);
    const auto* const data = reinterpret_cast<const std::byte*>(row.data());
    std::vector<float> expected(inner);
    for (Index k = 0; k < inner; k += info.values)
      moe::io::detail::decode_block(type, data + k / info.values * info.bytes, expected.data() + k);
    std::vector<float> values(inner);
    moe::detail::decode_output(moe::MatrixLayout(*format, 32, inner),
                               moe::io::detail::codes_of(type, data, inner), values.data());
    EXPECT_EQ(values, expected) << info.name;
  }
  EXPECT_FALSE(moe::io::detail::same_grid(GgufType::q4_k).has_value());
}

TEST_F(Gguf, ReadsMetadataAndTensors) {
  Writer writer;
  writer.head(2, 6);
  writer.text("general.architecture").number(std::uint32_t{8}).text("llama");
  writer.text("llama.expert_count").number(std::uint32_t{4}).number(std::uint32_t{8});
  writer.text("a.float").number(std::uint32_t{6}).number(0.5F);
  writer.text("a.flag").number(std::uint32_t{7}).number(std::uint8_t{1});
  writer.text("some.texts").number(std::uint32_t{9}).number(std::uint32_t{8});
  writer.number(std::uint64_t{2}).text("one").text("two");
  writer.text("some.numbers").number(std::uint32_t{9}).number(std::uint32_t{5});
  writer.number(std::uint64_t{3}).number(1).number(2).number(3);
  writer.tensor("a", {3, 2}, 0, 0).tensor("b", {32, 1, 2}, 8, 32).align();
  for (int i = 0; i < 6; ++i) writer.number(static_cast<float>(i));
  writer.align();
  for (int i = 0; i < 2; ++i)
    writer.raw(bytes_of({0x00, 0x3e}) + std::string(32, static_cast<char>(i + 1)));
  const GgufFile file = open(writer.bytes());
  EXPECT_EQ(std::get<std::string>(file.metadata().at("general.architecture")), "llama");
  EXPECT_EQ(std::get<std::uint64_t>(file.metadata().at("llama.expert_count")), 8U);
  EXPECT_EQ(std::get<double>(file.metadata().at("a.float")), 0.5);
  EXPECT_TRUE(std::get<bool>(file.metadata().at("a.flag")));
  EXPECT_EQ(std::get<moe::io::GgufArray>(file.metadata().at("some.texts")).length, 2U);
  const auto& a = file.tensor("a");
  EXPECT_EQ(a.shape, (std::vector<Index>{2, 3})) << "the inner dimension comes last here";
  std::vector<float> row(3);
  a.decode_row(1, row.data());
  EXPECT_EQ(row, (std::vector<float>{3, 4, 5}));
  const auto& b = file.tensor("b");
  EXPECT_EQ(b.rows(), 2);
  std::vector<float> wide(32);
  b.decode_row(1, wide.data());
  EXPECT_EQ(wide, std::vector<float>(32, 3));
  EXPECT_THROW(file.tensor("c"), moe::FormatError);
}

TEST_F(Gguf, RefusesWhatItCannotRead) {
  EXPECT_NE(refusal("GGML").find("no GGUF file"), std::string::npos);
  EXPECT_NE(refusal(Writer().head(0, 0, 1).bytes()).find("version 1"), std::string::npos);
  EXPECT_NE(
      refusal(Writer().head(0, 1).text("k").number(std::uint32_t{13}).bytes()).find("type 13"),
      std::string::npos);
  const auto with_tensor = [&](const std::vector<std::uint64_t>& dimensions, std::uint32_t type,
                               std::uint64_t offset) {
    return refusal(Writer()
                       .head(1, 0)
                       .tensor("t", dimensions, type, offset)
                       .align()
                       .raw(std::string(64, 0))
                       .bytes());
  };
  EXPECT_EQ(with_tensor({32}, 8, 0), "");
  EXPECT_NE(with_tensor({32}, 7, 0).find("type 7"), std::string::npos);
  EXPECT_NE(with_tensor({33}, 8, 0).find("whole blocks of Q8_0"), std::string::npos);
  EXPECT_NE(with_tensor({64}, 8, 0).find("beyond the file"), std::string::npos);
  EXPECT_NE(with_tensor({32}, 8, 1).find("not aligned"), std::string::npos);
  EXPECT_NE(with_tensor({32}, 8, ~std::uint64_t{31}).find("beyond the file"), std::string::npos);
  EXPECT_NE(with_tensor({0}, 0, 0).find("dimension of 0"), std::string::npos);
  EXPECT_NE(with_tensor({1U << 31U, 1U << 31U, 1U << 31U}, 0, 0).find("dimension"),
            std::string::npos);
  EXPECT_NE(with_tensor({1, 1, 1, 1, 1}, 0, 0).find("5 dimensions"), std::string::npos);
  // Twice the same name; arrays within arrays; lengths beyond the file.
  EXPECT_NE(refusal(Writer()
                        .head(2, 0)
                        .tensor("t", {1}, 0, 0)
                        .tensor("t", {1}, 0, 0)
                        .align()
                        .raw(std::string(64, 0))
                        .bytes())
                .find("two tensors"),
            std::string::npos);
  Writer nested;
  nested.head(0, 1).text("k").number(std::uint32_t{9});
  for (int i = 0; i < 6; ++i) nested.number(std::uint32_t{9}).number(std::uint64_t{1});
  EXPECT_NE(refusal(nested.bytes()).find("nested"), std::string::npos);
  EXPECT_NE(refusal(Writer().head(0, 1).number(~std::uint64_t{0}).bytes()).find("ends within"),
            std::string::npos);
  EXPECT_NE(refusal(Writer()
                        .head(0, 1)
                        .text("k")
                        .number(std::uint32_t{9})
                        .number(std::uint32_t{8})
                        .number(std::uint64_t{1} << 60U)
                        .bytes())
                .find("beyond the file"),
            std::string::npos);
  Writer alignment;
  alignment.head(0, 1).text("general.alignment").number(std::uint32_t{4}).number(std::uint32_t{3});
  EXPECT_NE(refusal(alignment.bytes()).find("alignment"), std::string::npos);
}

TEST_F(Gguf, EveryPrefixOfAFileIsRefused) {
  Writer writer;
  writer.head(1, 2);
  writer.text("general.architecture").number(std::uint32_t{8}).text("llama");
  writer.text("some.numbers").number(std::uint32_t{9}).number(std::uint32_t{5});
  writer.number(std::uint64_t{3}).number(1).number(2).number(3);
  writer.tensor("a", {32, 2}, 8, 0).align().raw(std::string(68, 1));
  EXPECT_EQ(refusal(writer.bytes()), "");
  for (std::size_t size = 0; size < writer.bytes().size(); ++size)
    EXPECT_NE(refusal(writer.bytes().substr(0, size)), "") << size;
}

}  // namespace gguf_test
