// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <set>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/core/weight_format.hpp>

namespace weight_format_test {

using moe::Index;
using moe::MatrixLayout;
using moe::WeightCode;
using moe::WeightFormat;

TEST(WeightFormat, HasANameThatNamesIt) {
  std::set<std::string> names;
  for (const WeightFormat& format : moe::weight_formats) {
    EXPECT_EQ(moe::format_of(moe::format_name(format)), format);
    names.insert(moe::format_name(format));
  }
  EXPECT_EQ(names.size(), moe::weight_formats.size());
  EXPECT_THROW(moe::format_of("int3"), std::invalid_argument);
}

TEST(WeightFormat, RefusesGroupsThatThereAreNot) {
  for (const WeightFormat format :
       {WeightFormat{WeightCode::int8, 16}, WeightFormat{WeightCode::int4, 0},
        WeightFormat{WeightCode::mxfp4, 64}, WeightFormat{WeightCode::fp8_e4m3, 64},
        WeightFormat{WeightCode::half, 32}})
    EXPECT_THROW(MatrixLayout(format, 64, 64), std::invalid_argument);
  EXPECT_THROW(MatrixLayout({WeightCode::int8, 0}, 64, 0), std::invalid_argument);
  EXPECT_THROW(MatrixLayout({WeightCode::int8, 0}, -32, 64), std::invalid_argument);
}

/// Bits of a weight with its scales, of a matrix of 1024 outputs and 4096 inner values.
double bits(const char* name) {
  const MatrixLayout layout(moe::format_of(name), 1024, 4096);
  return static_cast<double>(layout.bytes()) * 8 / (1024.0 * 4096);
}

TEST(MatrixLayout, TakesTheBitsThatItSays) {
  EXPECT_EQ(bits("int8"), 8 + 32.0 / 4096);
  EXPECT_EQ(bits("int8-g128"), 8.125);
  EXPECT_EQ(bits("int4-g32"), 4.5);
  EXPECT_EQ(bits("int4-g64"), 4.25);
  EXPECT_EQ(bits("int4z-g64"), 4.375);
  EXPECT_EQ(bits("nl4-g32"), 4.25 + 32.0 / 4096);
  EXPECT_EQ(bits("mxfp4"), 4.25);
  EXPECT_EQ(bits("fp8"), 8.25);
  EXPECT_EQ(bits("bf16"), 16);
}

TEST(MatrixLayout, FillsUpGroupsAndPanels) {
  const MatrixLayout layout({WeightCode::int4, 32}, 33, 70);
  EXPECT_EQ(layout.panels, 2);
  EXPECT_EQ(layout.groups, 3);
  EXPECT_EQ(layout.record_bytes(), 64 + 512);
  EXPECT_EQ(layout.panel_bytes, 3 * 576);
  EXPECT_EQ(layout.bytes(), 2 * 3 * 576);
  EXPECT_EQ(layout.codes_offset(1, 2), 5 * 576 + 64);
  // A panel of mxfp4 with an odd number of groups is filled up to whole lines.
  const MatrixLayout mxfp4({WeightCode::mxfp4, 32}, 32, 32);
  EXPECT_EQ(mxfp4.record_bytes(), 544);
  EXPECT_EQ(mxfp4.panel_bytes, 576);
  const MatrixLayout channels({WeightCode::int8, 0}, 32, 70);
  EXPECT_EQ(channels.groups, 1);
  EXPECT_EQ(channels.group, 72);
  EXPECT_EQ(channels.header_bytes, 128);
}

}  // namespace weight_format_test
