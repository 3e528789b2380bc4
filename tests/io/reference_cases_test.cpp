// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The runner of reference cases must fail where it should: on cases that were made wrong.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

#include "conformance/run_case.hpp"
#include "support/safetensors_writer.hpp"

namespace reference_cases_test {

using conformance::Verdict;
using test_support::TemporaryFolder;
using Edit = std::function<void(nlohmann::json& header)>;

const std::string golden = std::string(MOE_TEST_DATA) + "/golden";

/// The verdict on a copy of a case whose header was changed.
Verdict verdict_on(const std::string& name, const Edit& edit) {
  std::ifstream file(golden + "/" + name + ".safetensors", std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  edit(header);
  const TemporaryFolder folder;
  folder.write(name + ".safetensors",
               test_support::safetensors_bytes(header.dump(), bytes.substr(8 + length)));
  return conformance::run_case(folder.path(), name,
                               conformance::read_index(golden).at("cases").at(name));
}

void expect_failure(const std::string& name, const Edit& edit, const std::string& reason) {
  const Verdict verdict = verdict_on(name, edit);
  EXPECT_FALSE(verdict.passed) << verdict.line;
  EXPECT_EQ(verdict.line.substr(0, 5), "FAIL ");
  EXPECT_NE(verdict.line.find(reason), std::string::npos) << verdict.line;
}

Edit entry(const std::string& key, const std::string& value) {
  return [=](nlohmann::json& header) { header["__metadata__"][key] = value; };
}

/// Gives a tensor another name.
Edit rename(const std::string& from, const std::string& to) {
  return [=](nlohmann::json& header) {
    header[to] = header.at(from);
    header.erase(from);
  };
}

TEST(ReferenceCases, PassAsTheyAre) {
  const Verdict verdict = verdict_on("switch_drop_grad", [](nlohmann::json& /*header*/) {});
  EXPECT_TRUE(verdict.passed) << verdict.line;
}

TEST(ReferenceCases, FailWhereAShapeDiffers) {
  expect_failure(
      "switch_drop_grad",
      [](nlohmann::json& header) {
        header["expected.dropped"]["shape"] = {4, 3};
      },
      "dropped has another shape");
  expect_failure(
      "switch_drop_grad",
      [](nlohmann::json& header) {
        header["expected.kept_mask"]["shape"] = {8, 2};
      },
      "kept_mask has another shape");
}

TEST(ReferenceCases, FailWhereSomethingIsNotCompared) {
  expect_failure("mixtral_basic_grad", rename("expected.aux_loss", "expected.gradual"),
                 "expected.gradual was not compared");
  expect_failure("mixtral_basic_grad", rename("grad_output", "something"),
                 "something was not used");
  expect_failure("mixtral_basic_grad",
                 rename("grad_output", "model.layers.0.block_sparse_moe.experts.0.w1.bias"),
                 "experts.0.w1.bias");
}

TEST(ReferenceCases, FailWhereAnotherRuleIsDeclared) {
  expect_failure("mixtral_basic_grad", entry("norm_topk_prob", "0"), "'norm_topk_prob' is '0'");
  expect_failure("mixtral_basic_grad", entry("scoring", "sigmoid"), "'scoring' is 'sigmoid'");
  expect_failure("mixtral_basic_grad", entry("activation", "mish"), "'mish'");
  expect_failure("mixtral_basic_grad", entry("family", "other"), "'other'");
  expect_failure("deepseek_v3_e8g4", entry("group_mask_fill", "-inf"), "'group_mask_fill'");
  expect_failure("deepseek_v3_e8g4", entry("denominator_eps", "1e-3"), "'denominator_eps'");
  expect_failure("deepseek_v3_e8g4", entry("topk_method", "greedy"), "'topk_method'");
  expect_failure("llama4_top1_grad", entry("weights_applied_to", "output"), "'output'");
  expect_failure("switch_drop_grad", entry("capacity", "many"), "'capacity' is 'many'");
  expect_failure("switch_drop_grad", entry("capacity", "4"), "differ");
}

TEST(ReferenceCases, TellOfNoiseThatNobodyDraws) {
  const Verdict verdict = verdict_on("mixtral_basic_grad", rename("grad_output", "noise"));
  EXPECT_TRUE(verdict.passed);
  EXPECT_NE(verdict.line.find("noise was not used"), std::string::npos) << verdict.line;
}

TEST(ReferenceCases, FailWithoutAFile) {
  EXPECT_FALSE(conformance::run_case(golden, "lost", {{"file", "lost.safetensors"}}).passed);
  EXPECT_FALSE(conformance::run_case(golden, "nameless", nlohmann::json::object()).passed);
}

}  // namespace reference_cases_test
