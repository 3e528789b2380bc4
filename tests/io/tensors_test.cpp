// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/tensors.hpp>

#include "support/safetensors_writer.hpp"

namespace tensors_test {

using moe::FormatError;
using moe::Index;
using moe::Matrix;
using moe::io::Tensors;
using test_support::SafetensorsWriter;
using test_support::TemporaryFolder;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class Action>
std::string complaint(const Action& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(Tensors, AreWidenedFromEveryDtype) {
  SafetensorsWriter writer;
  writer.add("pad", "U8", {1}, "x");  // Everything after it is unaligned.
  writer.add("f64", "F64", {1, 2}, bytes_of<double>({0.1, -2}));
  writer.add("f32", "F32", {1, 2}, bytes_of<float>({0.1F, -2}));
  writer.add("f16", "F16", {1, 2}, bytes_of<std::uint16_t>({0x2e66, 0xc000}));
  writer.add("bf16", "BF16", {1, 2}, bytes_of<std::uint16_t>({0x3dcd, 0xc000}));
  writer.add("i64", "I64", {1, 2}, bytes_of<std::int64_t>({1'000'000'007, -2}));
  writer.add("i32", "I32", {1, 2}, bytes_of<std::int32_t>({1'000'000'007, -2}));
  writer.add("u8", "U8", {1, 2}, bytes_of<std::uint8_t>({200, 2}));
  const TemporaryFolder folder;
  const Tensors tensors = Tensors::open(folder.write("f.safetensors", writer.bytes()));
  const auto first = [&](const char* name) { return tensors.matrix<double>(name, 1, 2)(0, 0); };
  EXPECT_EQ(first("f64"), 0.1);
  EXPECT_EQ(first("f32"), static_cast<double>(0.1F));
  EXPECT_EQ(first("f16"), 0x666p-14);  // 0x2e66: (0x400 + 0x266) * 2^-10 * 2^-4
  EXPECT_EQ(first("bf16"), 0xcdp-11);  // 0x3dcd: (0x80 + 0x4d) * 2^-7 * 2^-4
  for (const char* name : {"f64", "f32", "f16", "bf16"}) {
    EXPECT_EQ((tensors.matrix<float>(name, 1, 2)(0, 1)), -2.0F) << name;
    EXPECT_THROW((tensors.matrix<int>(name, 1, 2)), FormatError) << name;
  }
  const auto integer = [&](const char* name) {
    return tensors.matrix<std::int32_t>(name, 1, 2)(0, 0);
  };
  EXPECT_EQ(integer("i64"), 1'000'000'007);
  EXPECT_EQ(integer("i32"), 1'000'000'007);
  EXPECT_EQ(integer("u8"), 200);
  // An integer that does not fit, and integers where numbers are expected.
  EXPECT_THROW((tensors.matrix<std::int16_t>("i64", 1, 2)), FormatError);
  EXPECT_NE(complaint([&] { tensors.matrix<float>("u8", 1, 2); }).find("dtype U8 does not fit"),
            std::string::npos);
  EXPECT_EQ((tensors.matrix<float>("f64", 1, 2)(0, 0)), 0.1F);
}

TEST(Tensors, AreFoundByNameAndShape) {
  SafetensorsWriter writer;
  writer.add("w", Matrix<float>::Constant(2, 3, 1.5F));
  writer.add_vector("v", Matrix<float>::Constant(4, 1, 2.5F));
  const TemporaryFolder folder;
  const std::string path = folder.write("f.safetensors", writer.bytes());
  const Tensors tensors = Tensors::open(path);
  EXPECT_EQ(tensors.names(), (std::vector<std::string>{"v", "w"}));
  EXPECT_TRUE(tensors.contains("w"));
  EXPECT_FALSE(tensors.contains("x"));
  EXPECT_EQ((tensors.matrix<float>("w", 2, 3)), (Matrix<float>::Constant(2, 3, 1.5F)));
  EXPECT_EQ((tensors.vector<float>("v", 4)), (moe::Vector<float>::Constant(4, 2.5F)));
  EXPECT_EQ(complaint([&] { tensors.matrix<float>("x", 1, 1); }),
            path + ": tensor 'x': at byte 0: is missing");
  const std::string shape = complaint([&] { tensors.matrix<float>("w", 3, 2); });
  EXPECT_NE(shape.find("tensor 'w'"), std::string::npos) << shape;
  EXPECT_NE(shape.find("expected shape [3, 2], found [2, 3]"), std::string::npos) << shape;
  EXPECT_THROW(tensors.vector<float>("w", 2), FormatError);
  EXPECT_NO_THROW(tensors.require("v", 4, 1));
  EXPECT_THROW(tensors.require("v", 1, 4), FormatError);
}

/// A folder with two shards and an index of them.
struct Shards {
  TemporaryFolder folder;
  nlohmann::json index = {{"weight_map", {{"a", "1.safetensors"}, {"b", "2.safetensors"}}}};

  Shards() {
    SafetensorsWriter one;
    one.metadata("format", "first");
    one.add("a", Matrix<float>::Constant(1, 2, 1.0F));
    folder.write("1.safetensors", one.bytes());
    SafetensorsWriter two;
    two.metadata("format", "second");
    two.metadata("extra", "second");
    two.add("b", Matrix<float>::Constant(2, 1, 2.0F));
    folder.write("2.safetensors", two.bytes());
  }

  std::string write_index() const {
    return folder.write("model.safetensors.index.json", index.dump());
  }
};

TEST(Tensors, WhatIsNotFiniteIsFoundInTheRangeThatIsLookedThrough) {
  Matrix<double> values = Matrix<double>::Ones(1, 3000);
  values(0, 1024) = std::numeric_limits<double>::infinity();
  values(0, 2999) = 1e39;  // Finite in double precision alone.
  SafetensorsWriter writer;
  writer.add("w", "F64", {1, 3000},
             {reinterpret_cast<const char*>(values.data()), 3000 * sizeof(double)});
  const TemporaryFolder folder;
  const Tensors tensors = Tensors::open(folder.write("m.safetensors", writer.bytes()));
  const auto bad_index = [&](Index first, Index count) {
    try {
      tensors.require_finite("w", first, count);
    } catch (const moe::FormatError& error) {
      EXPECT_EQ(error.tensor(), "w");
      return static_cast<Index>(error.offset() - tensors.tensor("w").offset) / 8;
    }
    return Index{-1};
  };
  EXPECT_EQ(bad_index(0, 3000), 1024);
  EXPECT_EQ(bad_index(1024, 1), 1024);
  EXPECT_EQ(bad_index(0, 1024), -1);
  EXPECT_EQ(bad_index(1025, 1974), -1);
  EXPECT_EQ(bad_index(1025, 1975), 2999);
  EXPECT_EQ(bad_index(3000, 0), -1);
  EXPECT_THROW(tensors.require_finite("w", 2, 2999), std::invalid_argument);
  EXPECT_THROW(tensors.require_finite("w", -1, 1), std::invalid_argument);
}

TEST(Tensors, OfAShardedSetAreOneCheckpoint) {
  const Shards shards;
  const std::string index = shards.write_index();
  for (const std::string& path : {index, shards.folder.path()}) {
    const Tensors tensors = Tensors::open(path);
    EXPECT_EQ(tensors.path(), index);
    EXPECT_EQ(tensors.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ((tensors.matrix<double>("a", 1, 2)(0, 1)), 1);
    EXPECT_EQ((tensors.matrix<double>("b", 2, 1)(1, 0)), 2);
    EXPECT_EQ(tensors.metadata().at("format"), "first");
    EXPECT_EQ(tensors.metadata().at("extra"), "second");
  }
}

TEST(Tensors, OfABrokenIndexAreRefused) {
  const auto after = [](auto change) {
    Shards shards;
    change(shards.index);
    const std::string path = shards.write_index();
    return complaint([&] { Tensors::open(path); });
  };
  EXPECT_NE(after([](auto& i) {
              i["weight_map"]["c"] = "1.safetensors";
            }).find("tensor 'c': at byte 0: is not in 1.safetensors"),
            std::string::npos);
  EXPECT_NE(after([](auto& i) { i["weight_map"]["c"] = "3.safetensors"; }).find("3.safetensors"),
            std::string::npos);
  EXPECT_NE(after([](auto& i) { i["weight_map"]["c"] = 3; }).find("tensor 'c'"), std::string::npos);
  for (const char* outside : {"../1.safetensors", "/etc/passwd", "..", ".", "a/1.safetensors", ""})
    EXPECT_NE(after([&](auto& i) { i["weight_map"]["c"] = outside; }).find("not a file beside it"),
              std::string::npos)
        << outside;
  EXPECT_NE(after([](auto& i) { i.erase("weight_map"); }).find("no weight_map"), std::string::npos);
  EXPECT_NE(after([](auto& i) { i = 3; }).find("no weight_map"), std::string::npos);
}

TEST(Tensors, OfWhatIsNotThereAreRefusedByName) {
  const TemporaryFolder folder;
  EXPECT_NE(complaint([&] { Tensors::open(folder.path()); }).find(folder.path()),
            std::string::npos);
  const std::string missing = folder.file("missing.safetensors");
  EXPECT_NE(complaint([&] { Tensors::open(missing); }).find(missing), std::string::npos);
  SafetensorsWriter writer;
  writer.add("w", Matrix<float>::Zero(1, 1));
  folder.write("1.safetensors", writer.bytes());
  EXPECT_EQ(Tensors::open(folder.path()).path(), folder.file("1.safetensors"));
  folder.write("2.safetensors", writer.bytes());
  EXPECT_NE(complaint([&] { Tensors::open(folder.path()); }).find("found 0 and 2"),
            std::string::npos);
}

}  // namespace tensors_test
