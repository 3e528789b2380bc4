// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/quantized_experts.hpp>
#include <moe/io/packed.hpp>
#include <moe/io/packed_writer.hpp>

#include "support/layers.hpp"
#include "support/loading.hpp"

namespace packed_test {

using moe::Index;
using moe::io::PackedFile;
using Bank = moe::QuantizedExperts<moe::SwiGlu>;

/// A path in a folder that is gone after the test.
class Packed : public testing::Test {
 protected:
  void SetUp() override {
    const auto* const test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / (std::string("moe_packed_") + test->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const char* name = "a.safetensors") const { return (folder_ / name).string(); }

  std::string read() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) const {
    std::ofstream(path(), std::ios::binary)
        .write(text.data(), static_cast<std::streamsize>(text.size()));
  }

  std::string bank_and_tensor(Index size);

  std::filesystem::path folder_;
};

template <class BankT>
BankT make_bank(const std::vector<moe::ExpertFormat>& formats, moe::DownBias down_bias) {
  const moe::ExpertsConfig config{.num_experts = static_cast<Index>(formats.size()),
                                  .d_model = 40,
                                  .d_ff = 70,
                                  .biases = true,
                                  .down_bias = down_bias};
  using Floats = moe::FeedForwardExperts<float, moe::SwiGlu>;
  const Floats floats = test_support::random_bank<Floats>(config, 3);
  BankT bank(config, formats);
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<float> matrices = floats.expert(e);
    bank.set_expert(e, matrices.weights());
  }
  return bank;
}

std::vector<moe::ExpertFormat> all_formats() {
  std::vector<moe::ExpertFormat> formats;
  for (std::size_t i = 0; i < moe::weight_formats.size(); ++i)
    formats.push_back(
        {moe::weight_formats[i], moe::weight_formats[(i + 5) % moe::weight_formats.size()]});
  return formats;
}

template <class A, class B>
void expect_equal(const A& a, const B& b) {
  ASSERT_EQ(a.num_experts(), b.num_experts());
  for (Index e = 0; e < a.num_experts(); ++e) {
    EXPECT_EQ(a.format(e), b.format(e));
    EXPECT_TRUE(std::ranges::equal(a.expert_bytes(e), b.expert_bytes(e))) << e;
  }
  EXPECT_EQ(a.up_bias(), b.up_bias());
  EXPECT_EQ(a.down_bias(), b.down_bias());
  EXPECT_EQ(a.config().down_bias, b.config().down_bias);
}

TEST_F(Packed, ComesBackAsItWasWithoutACopy) {
  const Bank bank = make_bank<Bank>(all_formats(), moe::DownBias::unweighted);
  moe::io::write_packed(path(), bank);
  const PackedFile file(path());
  file.verify();
  Bank back = file.bank<moe::SwiGlu>("experts");
  expect_equal(back, bank);
  const std::span<const std::byte> mapped = file.file().tensors().at("experts.3").data;
  EXPECT_EQ(back.expert_bytes(3).data(), mapped.data());
  EXPECT_FALSE(std::filesystem::exists(path("a.safetensors.part")));
  // Whoever changes a weight has memory of its own then; the file stays.
  back.set_expert_bytes(0, std::vector<std::byte>(back.expert_bytes(0).size()));
  EXPECT_NE(back.expert_bytes(3).data(), mapped.data());
  EXPECT_TRUE(std::ranges::equal(back.expert_bytes(3), bank.expert_bytes(3)));
  file.verify();
}

TEST_F(Packed, HoldsSeveralBanksTensorsAndConstants) {
  using Clamped = moe::QuantizedExperts<moe::ClampedSwiGlu>;
  const Bank plain = make_bank<Bank>({{}, {}}, moe::DownBias::weighted);
  Clamped clamped(plain.config(), moe::ExpertFormat{}, {.alpha = 3, .limit = 2, .offset = 4});
  moe::io::PackedWriter writer(
      path(), {{"layers.0", moe::io::describe(plain)}, {"layers.1", moe::io::describe(clamped)}},
      {{"router.weight", "F32", {2}, std::string("\0\0\x80\x3f\0\0\0\x40", 8)}},
      {{"config", "{}"}});
  writer.write_bank("layers.1", clamped);
  writer.write_bank("layers.0", plain);
  writer.finish();
  const PackedFile file(path());
  file.verify();
  expect_equal(file.bank<moe::SwiGlu>("layers.0"), plain);
  const Clamped back = file.bank<moe::ClampedSwiGlu>("layers.1");
  EXPECT_EQ(back.activation().alpha, 3);
  EXPECT_EQ(back.activation().limit, 2);
  EXPECT_EQ(back.activation().offset, 4);
  EXPECT_EQ(file.file().metadata().at("config"), "{}");
  EXPECT_EQ(file.file().tensors().at("router.weight").shape, std::vector<Index>{2});
  EXPECT_THROW(file.bank<moe::SwiGlu>("layers.1"), moe::FormatError);
  EXPECT_THROW(file.bank<moe::Silu>("layers.0"), moe::FormatError) << "it is gated";
  EXPECT_THROW(file.bank<moe::SwiGlu>("layers.2"), moe::FormatError);
}

TEST_F(Packed, AFileThatIsReplacedStaysUntilTheNewOneIsComplete) {
  const Bank bank = make_bank<Bank>({{}, {}}, moe::DownBias::weighted);
  moe::io::write_packed(path(), bank);
  const std::string before = read();
  {
    moe::io::PackedWriter writer(path(), {{"experts", moe::io::describe(bank)}});
    writer.write_expert("experts", 0, bank.expert_bytes(0));
    EXPECT_THROW(writer.finish(), std::logic_error) << "there is more to write";
    EXPECT_THROW(writer.write_expert("experts", 1, bank.expert_bytes(0).first(64)),
                 moe::ShapeError);
    EXPECT_THROW(writer.write_expert("others", 1, bank.expert_bytes(1)), std::out_of_range);
    EXPECT_THROW(writer.write_expert("experts", 9, bank.expert_bytes(1)), std::out_of_range);
  }
  EXPECT_EQ(read(), before);
  EXPECT_FALSE(std::filesystem::exists(path("a.safetensors.part")));
  EXPECT_THROW(moe::io::write_packed((folder_ / "none" / "a").string(), bank), std::system_error);
}

TEST_F(Packed, AFullDiskIsAnErrorAndLeavesNothing) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no device that is full";
  const Bank bank = make_bank<Bank>({{}, {}}, moe::DownBias::weighted);
  std::filesystem::create_symlink("/dev/full", path("b.part"));
  EXPECT_THROW(moe::io::write_packed(path("b"), bank), std::system_error);
  EXPECT_FALSE(std::filesystem::exists(path("b")));
}

TEST_F(Packed, AWriterThatCannotBeMadeLeavesNothing) {
  const Bank bank = make_bank<Bank>({{}, {}}, moe::DownBias::weighted);
  EXPECT_ANY_THROW(
      moe::io::PackedWriter(path(), {{"experts", moe::io::describe(bank)}}, {}, {{"note", "\xff"}}))
      << "no UTF-8";
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  using Clamped = moe::QuantizedExperts<moe::ClampedSwiGlu>;
  const double infinity = std::numeric_limits<double>::infinity();
  const Clamped clamped(bank.config(), moe::ExpertFormat{}, {.alpha = 3, .limit = infinity});
  EXPECT_THROW(moe::io::write_packed(path(), clamped), std::invalid_argument)
      << "JSON has no infinity";
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

/// The bytes of a file of two experts with biases, and of a tensor beside them.
std::string Packed::bank_and_tensor(Index size) {
  const Bank bank = make_bank<Bank>({{}, {moe::format_of("mxfp4"), moe::format_of("fp8")}},
                                    moe::DownBias::weighted);
  const std::string bytes(static_cast<std::size_t>(size), 'a');
  moe::io::PackedWriter writer(path(), {{"experts", moe::io::describe(bank)}},
                               {{"router.weight", "U8", {size}, bytes}});
  writer.write_bank("experts", bank);
  writer.finish();
  return read();
}

TEST_F(Packed, EveryChangedByteIsFound) {
  const std::string whole = bank_and_tensor(5000);
  const std::size_t header = whole.find("experts.0");
  ASSERT_NE(header, std::string::npos);
  const std::size_t data = 8 + static_cast<unsigned char>(whole[0]) +
                           256 * static_cast<std::size_t>(static_cast<unsigned char>(whole[1]));
  std::size_t refused = 0;
  for (std::size_t at = 0; at < whole.size(); at += at < data ? 1 : 997) {
    if (at >= 8 && at < data && whole[at] == ' ') continue;  // What fills up may be other blanks.
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 4);
    write(changed);
    bool is_found = false;
    try {
      const PackedFile file(path());
      file.verify();
    } catch (const std::exception&) {
      is_found = true;
    }
    EXPECT_TRUE(is_found) << "byte " << at << " of " << whole.size();
    refused += is_found ? 1 : 0;
  }
  EXPECT_GT(refused, data / 2);
}

TEST_F(Packed, VerifyNamesTheTensorThatWasChanged) {
  const std::string whole = bank_and_tensor(64);
  for (const char* name : {"experts.0", "experts.1", "experts.down_bias", "router.weight"}) {
    SCOPED_TRACE(name);
    write(whole);
    const auto offset = PackedFile(path()).file().tensors().at(name).offset;
    std::string changed = whole;
    char& byte = changed[static_cast<std::size_t>(offset) + 3];
    byte = static_cast<char>(byte ^ 1);
    write(changed);
    const PackedFile file(path());
    const auto error = test_support::format_error([&] { file.verify(); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->tensor(), name);
    EXPECT_EQ(error->offset(), offset);
  }
}

/// An output of codes and scales that depend on its place alone.
moe::CodedOutput output_of(const moe::MatrixLayout& layout, Index o) {
  const auto traits = moe::detail::traits_of(layout.format);
  moe::CodedOutput output;
  output.output_scale = traits.has_output_scale ? 0.25F : 1;
  for (Index k = 0; k < layout.inner; ++k) {
    const auto code = static_cast<unsigned>(37 * o + 11 * k) % (traits.bits == 4 ? 16U : 120U);
    output.codes.push_back(static_cast<std::uint16_t>(traits.bits == 16 ? 0x3c00U + code : code));
  }
  const bool has_scales = traits.scale != moe::detail::ScaleKind::none;
  for (Index g = 0; g < layout.groups && has_scales; ++g)
    output.scales.push_back(static_cast<float>(1 << ((o + g) % 3)));
  for (Index g = 0; g < layout.groups && traits.has_zeros; ++g)
    output.zeros.push_back(static_cast<std::uint8_t>((o + 2 * g) % 16));
  return output;
}

/// One expert of each format, D = 40, F = 36: more than one group, and panels that are filled up.
Bank bank_of_codes() {
  const std::vector<moe::ExpertFormat> formats = all_formats();
  Bank bank({.num_experts = static_cast<Index>(formats.size()), .d_model = 40, .d_ff = 36},
            formats);
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const moe::ExpertLayout& layout = bank.layout_of(e);
    bank.set_expert_codes(e, {[&](Index o) { return output_of(layout.up, o); },
                              [&](Index o) { return output_of(layout.up, 100 + o); },
                              [&](Index o) { return output_of(layout.down, 200 + o); }});
  }
  return bank;
}

TEST_F(Packed, AFileOfBeforeHasTheSameBytes) {
  const PackedFile file(MOE_TEST_DATA "/packed_version_2.safetensors");
  file.verify();
  expect_equal(file.bank<moe::SwiGlu>("experts"), bank_of_codes());
}

TEST_F(Packed, RefusesWhatIsNoPackedFileOfThisVersion) {
  const Bank bank = make_bank<Bank>({{}, {}}, moe::DownBias::weighted);
  moe::io::write_packed(path(), bank);
  const std::string whole = read();
  EXPECT_THROW(PackedFile(path("none")), std::system_error);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() - 1}) {
    write(whole.substr(0, size));
    EXPECT_THROW(PackedFile{path()}, moe::FormatError) << size;
  }
  std::string other = whole;
  const std::string entry =
      moe::detail::text_of("\"moe.version\":\"", moe::io::packed_version, "\"");
  const std::size_t at = other.find(entry);
  ASSERT_NE(at, std::string::npos);
  other[at + entry.size() - 2] = '9';
  write(other);
  try {
    const PackedFile file(path());
    ADD_FAILURE() << "another version was read";
  } catch (const moe::FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("version 9"), std::string::npos) << error.what();
  }
}

}  // namespace packed_test
