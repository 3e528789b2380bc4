// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Files that fuzzing found ways through the parsers with: each is read or refused, and no more. To
// be run under AddressSanitizer.
#include <cstddef>
#include <string>

#include <gtest/gtest.h>

#include "fuzz/parsers.hpp"
#include "fuzz/seeds.hpp"

namespace corpus_test {

class Corpus : public testing::TestWithParam<const char*> {
 protected:
  const fuzz::Parser& parser_ = fuzz::parser_of(GetParam());
};

TEST_P(Corpus, EveryFileIsReadOrRefused) {
  const std::string path = std::string(MOE_TEST_DATA "/corpus/") + GetParam() + ".bin";
  const auto files = fuzz::read_corpus(path);
  std::size_t refused = 0;
  for (const std::string& file : files) refused += fuzz::is_read(parser_, file) ? 0 : 1;
  EXPECT_GE(files.size(), 100U);
  EXPECT_GT(refused, files.size() / 2);
}

TEST_P(Corpus, WhatItGrewFromIsRead) {
  const auto seeds = fuzz::seeds_of(GetParam());
  EXPECT_FALSE(seeds.empty());
  for (const std::string& file : seeds) EXPECT_TRUE(fuzz::is_read(parser_, file));
}

INSTANTIATE_TEST_SUITE_P(Files, Corpus,
                         testing::Values("safetensors", "index", "gguf", "packed", "checkpoint"),
                         [](const auto& parser) { return std::string(parser.param); });

}  // namespace corpus_test
