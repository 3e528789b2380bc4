// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The bundled checkpoint, damaged: truncated at many places, and with single bytes of its header
// changed. Each time it is refused, or every tensor lies within the file. To be run under
// AddressSanitizer.
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/io/safetensors.hpp>

#include "support/safetensors_writer.hpp"

namespace robustness_test {

std::string bundled_checkpoint() {
  std::ifstream stream(MOE_EXAMPLE_DATA "/jargon-moe.safetensors", std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::uint64_t header_length(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return length;
}

std::uint64_t draw(std::uint64_t seed, std::uint64_t position, std::uint64_t below) {
  return static_cast<std::uint64_t>(moe::detail::uniform(seed, position) *
                                    static_cast<double>(below));
}

/// True if the file was refused. Else reads the ends of every tensor.
bool is_refused(const std::string& path) {
  try {
    const moe::io::SafetensorsFile file(path);
    const std::uint64_t file_bytes = std::filesystem::file_size(path);
    for (const auto& [name, tensor] : file.tensors()) {
      EXPECT_LE(tensor.offset + tensor.data.size(), file_bytes) << name;
      if (tensor.data.empty()) continue;
      // Volatile, so that the reads are made.
      const volatile std::byte first = tensor.data.front();
      const volatile std::byte last = tensor.data.back();
      (void)first;
      (void)last;
    }
    return false;
  } catch (const moe::FormatError& error) {
    EXPECT_EQ(error.file(), path);
    return true;
  }
}

TEST(Robustness, TheBundledCheckpointIsWhole) {
  EXPECT_FALSE(is_refused(MOE_EXAMPLE_DATA "/jargon-moe.safetensors"));
}

TEST(Robustness, TruncatedAt200PlacesItIsRefused) {
  const std::string whole = bundled_checkpoint();
  const std::uint64_t header_end = 8 + header_length(whole);
  ASSERT_LT(header_end, whole.size());
  const test_support::TemporaryFolder folder;
  const std::string path = folder.write("truncated.safetensors", whole);
  // From the end on, so that truncating is all there is to do. The first 17 bytes, 63 places in the
  // header and 120 in the data.
  std::set<std::uint64_t, std::greater<>> sizes;
  for (std::uint64_t size = 0; size <= 16; ++size) sizes.insert(size);
  for (std::uint64_t i = 0; sizes.size() < 80; ++i) sizes.insert(draw(1, i, header_end));
  sizes.insert({header_end, header_end + 1, whole.size() - 1});
  for (std::uint64_t i = 0; sizes.size() < 200; ++i)
    sizes.insert(header_end + draw(2, i, whole.size() - header_end));
  for (const std::uint64_t size : sizes) {
    std::filesystem::resize_file(path, size);
    EXPECT_TRUE(is_refused(path)) << size;
  }
}

TEST(Robustness, With2000ChangedHeaderBytesItIsRefusedOrWhole) {
  const std::string whole = bundled_checkpoint();
  const std::uint64_t header_end = 8 + header_length(whole);
  const test_support::TemporaryFolder folder;
  const std::string path = folder.write("changed.safetensors", whole);
  const int file = open(path.c_str(), O_WRONLY);
  ASSERT_GE(file, 0);
  int refused = 0;
  for (std::uint64_t trial = 0; trial < 2000; ++trial) {
    const std::uint64_t place = draw(3, trial, header_end);
    const char before = whole[place];
    const char after = static_cast<char>(before ^ static_cast<char>(1 + draw(4, trial, 255)));
    ASSERT_EQ(pwrite(file, &after, 1, static_cast<off_t>(place)), 1);
    refused += is_refused(path) ? 1 : 0;
    ASSERT_EQ(pwrite(file, &before, 1, static_cast<off_t>(place)), 1);
  }
  close(file);
  EXPECT_FALSE(is_refused(path));
  // Most bytes of a header carry meaning; a few belong to names and metadata.
  EXPECT_GT(refused, 500);
}

}  // namespace robustness_test
