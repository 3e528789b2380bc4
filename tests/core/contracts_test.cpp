// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/core/contracts.hpp>

namespace contracts_test {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Contracts, SizesThatAgreePass) {
  EXPECT_NO_THROW(moe::detail::check_size("f", "x.cols()", 0, 0));
  EXPECT_NO_THROW(moe::detail::check_size("f", "x.cols()", 512, 512));
  EXPECT_NO_THROW(moe::detail::check(true, "f", "never"));
}

TEST(Contracts, ShapeErrorNamesFunctionQuantityAndBothSizes) {
  const auto call = [] { moe::detail::check_size("SparseMoe::forward", "x.cols()", 512, 256); };
  EXPECT_THROW(call(), moe::ShapeError);
  EXPECT_EQ(message_of(call), "SparseMoe::forward: x.cols(): expected 512, got 256");
  EXPECT_EQ(message_of([] { moe::detail::throw_shape("f", "rows (at least)", 0, -3); }),
            "f: rows (at least): expected 0, got -3");
}

TEST(Contracts, ShapeErrorIsAnInvalidArgument) {
  EXPECT_THROW(moe::detail::check_size("f", "n", 1, 2), std::invalid_argument);
}

TEST(Contracts, BrokenConditionIsAnInvalidArgumentButNoShapeError) {
  try {
    moe::detail::check(false, "make_plan", "capacity must not be negative");
    FAIL() << "no exception";
  } catch (const moe::ShapeError&) {
    FAIL() << "a ShapeError";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "make_plan: capacity must not be negative");
  }
}

TEST(Contracts, FormatErrorCarriesItsFields) {
  const moe::FormatError error("a.safetensors", "gate.weight", 123456789012, "unknown type");
  EXPECT_EQ(error.file(), "a.safetensors");
  EXPECT_EQ(error.tensor(), "gate.weight");
  EXPECT_EQ(error.offset(), 123456789012U);
  EXPECT_STREQ(error.what(),
               "a.safetensors: tensor 'gate.weight': at byte 123456789012: unknown type");
}

TEST(Contracts, FormatErrorOutsideAnyTensorNamesNone) {
  const moe::FormatError error("a.safetensors", "", 8, "no header");
  EXPECT_EQ(error.tensor(), "");
  EXPECT_STREQ(error.what(), "a.safetensors: at byte 8: no header");
}

}  // namespace contracts_test
