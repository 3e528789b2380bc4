// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/safetensors.hpp>

#include "support/safetensors_writer.hpp"

namespace safetensors_test {

using moe::FormatError;
using moe::Index;
using moe::io::Dtype;
using moe::io::SafetensorsFile;
using test_support::safetensors_bytes;
using test_support::SafetensorsWriter;
using test_support::TemporaryFolder;

/// Two tensors of 24 and 8 bytes.
SafetensorsWriter two_tensors() {
  SafetensorsWriter writer;
  writer.metadata("key", "value");
  writer.add("a", "F32", {2, 3}, std::string(24, '\1'));
  writer.add("b", "I64", {1}, std::string(8, '\2'));
  return writer;
}

struct Complaint {
  std::string problem;
  std::string tensor;
  std::uint64_t offset = 0;
};

Complaint complaint(const std::string& bytes) {
  const TemporaryFolder folder;
  const std::string path = folder.write("f.safetensors", bytes);
  try {
    const SafetensorsFile file(path);
  } catch (const FormatError& error) {
    EXPECT_EQ(error.file(), path);
    EXPECT_EQ(std::string(error.what()).find(path), 0U);
    return {error.what(), error.tensor(), error.offset()};
  }
  return {};
}

/// The complaint about two tensors after a change of the header.
Complaint after(const std::function<void(nlohmann::json&)>& change) {
  SafetensorsWriter writer = two_tensors();
  change(writer.header());
  return complaint(writer.bytes());
}

void expect_problem(const Complaint& actual, const std::string& part, const std::string& tensor) {
  EXPECT_NE(actual.problem.find(part), std::string::npos) << actual.problem;
  EXPECT_EQ(actual.tensor, tensor) << actual.problem;
}

TEST(Safetensors, ReadsWhatIsWritten) {
  const TemporaryFolder folder;
  const SafetensorsFile file(folder.write("f.safetensors", two_tensors().bytes()));
  EXPECT_EQ(file.metadata().at("key"), "value");
  ASSERT_EQ(file.tensors().size(), 2U);
  const moe::io::TensorView& a = file.tensors().at("a");
  EXPECT_EQ(a.dtype, Dtype::f32);
  EXPECT_EQ(a.shape, (std::vector<Index>{2, 3}));
  EXPECT_EQ(a.size(), 6);
  EXPECT_EQ(a.data.size(), 24U);
  EXPECT_EQ(a.data[23], std::byte{1});
  const moe::io::TensorView& b = file.tensors().at("b");
  EXPECT_EQ(b.dtype, Dtype::i64);
  EXPECT_EQ(b.offset, a.offset + 24);
  EXPECT_EQ(b.data.data(), a.data.data() + 24);
}

TEST(Safetensors, KnowsEveryDtypeScalarsAndEmptyTensors) {
  SafetensorsWriter writer;
  const std::vector<std::pair<const char*, std::size_t>> dtypes{
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}};
  for (const auto& [name, bytes] : dtypes) writer.add(name, name, {3}, std::string(3 * bytes, 0));
  writer.add("scalar", "F32", {}, std::string(4, 0));
  writer.add("empty", "F32", {0, 5}, "");
  const TemporaryFolder folder;
  const SafetensorsFile file(folder.write("f.safetensors", writer.bytes()));
  for (const auto& [name, bytes] : dtypes) EXPECT_EQ(file.tensors().at(name).size(), 3) << name;
  EXPECT_EQ(file.tensors().at("scalar").size(), 1);
  EXPECT_EQ(file.tensors().at("empty").size(), 0);
}

TEST(Safetensors, RefusesATruncatedOrAbsurdHeader) {
  const std::string good = two_tensors().bytes();
  expect_problem(complaint(""), "ends within the header length", "");
  expect_problem(complaint(good.substr(0, 7)), "ends within the header length", "");
  expect_problem(complaint(good.substr(0, 8)), "ends within its header", "");
  expect_problem(complaint(good.substr(0, 30)), "ends within its header", "");
  std::string absurd = good;
  absurd[7] = '\x7f';
  expect_problem(complaint(absurd), "is absurd", "");
  absurd = good;
  const std::uint64_t length = SafetensorsFile::max_header_bytes + 1;
  std::memcpy(absurd.data(), &length, 8);
  expect_problem(complaint(absurd), "is absurd", "");
  EXPECT_EQ(complaint(absurd).offset, 0U);
}

TEST(Safetensors, RefusesAHeaderOfAnotherForm) {
  expect_problem(complaint(safetensors_bytes("{\"a\": ", "")), "is not JSON", "");
  expect_problem(complaint(safetensors_bytes("[1, 2]", "")), "not a JSON object", "");
  expect_problem(complaint(safetensors_bytes("\xff\xfe", "")), "is not JSON", "");
  expect_problem(complaint(safetensors_bytes("", "")), "is not JSON", "");
  const std::string deep = std::string(300'000, '[') + std::string(300'000, ']');
  expect_problem(complaint(safetensors_bytes(deep, "")), "nested too deeply", "");
  expect_problem(complaint(safetensors_bytes(R"({"a":{"dtype":)" + deep + "}}", "")),
                 "nested too deeply", "");
  expect_problem(complaint(safetensors_bytes("\xef\xbb\xbf{}", "")), "is not JSON", "");
  expect_problem(complaint(safetensors_bytes(std::string("{}\0x", 4), "")), "is not JSON", "");
  expect_problem(after([](auto& h) { h["a"] = 3; }), "has no 'dtype'", "a");
  expect_problem(after([](auto& h) { h["a"].erase("shape"); }), "has no 'shape'", "a");
  expect_problem(after([](auto& h) { h["a"]["more"] = 1; }), "fields beside", "a");
  expect_problem(after([](auto& h) { h["__metadata__"] = 3; }), "__metadata__", "");
  expect_problem(after([](auto& h) { h["__metadata__"]["k"] = 3; }), "is not a string", "");
}

TEST(Safetensors, RefusesANameThatOccursTwice) {
  const std::string tensor = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  const std::string header = R"({"x":)" + tensor + R"(,"x":)" + tensor + "}";
  expect_problem(complaint(safetensors_bytes(header, "1")), "occurs twice", "x");
  const std::string twice = R"({"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  expect_problem(complaint(safetensors_bytes(twice, "1")), "key 'dtype' occurs twice", "");
  // Names within a tensor are its own.
  EXPECT_EQ(complaint(safetensors_bytes(R"({"dtype":)" + tensor + "}", "1")).problem, "");
}

TEST(Safetensors, RefusesAWrongDtypeOrShape) {
  expect_problem(after([](auto& h) { h["a"]["dtype"] = "F31"; }), "dtype \"F31\"", "a");
  expect_problem(after([](auto& h) { h["a"]["dtype"] = 3; }), "dtype 3", "a");
  expect_problem(after([](auto& h) { h["a"]["dtype"] = "F64"; }), "dtype and shape need 48", "a");
  expect_problem(after([](auto& h) { h["a"]["shape"] = 6; }), "not an array", "a");
  expect_problem(after([](auto& h) { h["a"]["shape"] = {2, -3}; }), "shape holds -3", "a");
  expect_problem(after([](auto& h) { h["a"]["shape"] = {2, 2.5}; }), "shape holds 2.5", "a");
  expect_problem(after([](auto& h) { h["a"]["shape"] = {2, 4}; }), "dtype and shape need 32", "a");
  const std::uint64_t huge = std::uint64_t{1} << 62;
  expect_problem(after([&](auto& h) { h["a"]["shape"] = {huge, 4}; }), "overflows", "a");
  expect_problem(after([&](auto& h) { h["a"]["shape"] = {huge * 3}; }), "overflows", "a");
  expect_problem(after([&](auto& h) { h["a"]["shape"] = {huge, huge, 0}; }), "overflows", "a");
}

TEST(Safetensors, RefusesOffsetsThatDoNotCoverTheDataOnce) {
  const auto with = [](auto begin, auto end) {
    return after([&](auto& h) { h["b"]["data_offsets"] = {begin, end}; });
  };
  expect_problem(with(24, 40), "outside the data area", "b");
  expect_problem(with(32, 24), "outside the data area", "b");
  expect_problem(with(std::numeric_limits<std::uint64_t>::max(), 8), "outside", "b");
  expect_problem(with(-8, 0), "not two positions", "b");
  expect_problem(with(24.0, 32.0), "not two positions", "b");
  expect_problem(with(16, 24), "overlaps", "b");
  expect_problem(with(24, 31), "dtype and shape need 8", "b");
  expect_problem(after([](auto& h) { h["b"]["data_offsets"] = {24}; }), "not two positions", "b");
  expect_problem(after([](auto& h) { h["b"]["data_offsets"] = 24; }), "not two positions", "b");
  expect_problem(after([](auto& h) { h.erase("a"); }), "gap of 24 bytes", "b");
  expect_problem(after([](auto& h) { h.erase("b"); }), "8 bytes belong to no tensor", "");

  SafetensorsWriter without_b = two_tensors();
  without_b.header().erase("b");
  // The last 8 bytes are the ones that nobody owns.
  EXPECT_EQ(complaint(without_b.bytes()).offset, without_b.bytes().size() - 8);
}

TEST(Safetensors, RefusesATruncatedFileAtEveryByte) {
  const std::string good = two_tensors().bytes();
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_NE(complaint(good.substr(0, size)).problem, "") << size;
  EXPECT_EQ(complaint(good).problem, "");
  expect_problem(complaint(good + "x"), "1 bytes belong to no tensor", "");
}

}  // namespace safetensors_test
