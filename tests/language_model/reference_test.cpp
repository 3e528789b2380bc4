// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The bundled model against figures of another implementation in float64.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "language_model/bundled_model.hpp"
#include "language_model/evaluate.hpp"
#include "language_model/generate.hpp"

namespace language_model {
namespace reference_test {

template <class Scalar>
class Reference : public testing::Test {};

using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Reference, Scalars);

/// The reference holds this many decimals of a logit.
constexpr double printed_logit = 1e-9;

TYPED_TEST(Reference, LogitsOfTheFirstWindow) {
  const Model<TypeParam>& model = bundled_model<TypeParam>();
  Session<TypeParam> session(model.config(), 1, window_bytes);
  const auto tokens = to_tokens(bundled_text().substr(0, window_bytes), 128, "text");
  const Matrix<TypeParam> logits = model.logits(model.forward(tokens, session));  // (128, 128)
  const double tolerance = logit_tolerance<TypeParam>() + printed_logit;
  const auto compare = [&](Index row, const char* name) {
    const auto expected = reference()[name].get<std::vector<double>>();
    ASSERT_EQ(expected.size(), static_cast<std::size_t>(logits.cols()));
    for (Index i = 0; i < logits.cols(); ++i)
      EXPECT_NEAR(static_cast<double>(logits(row, i)), expected[static_cast<std::size_t>(i)],
                  tolerance)
          << name << " " << i;
  };
  compare(0, "first_window_first_position_logits");
  compare(logits.rows() - 1, "first_window_last_position_logits");
}

TYPED_TEST(Reference, NatsOfTheFirstWindows) {
  const auto expected =
      reference()["nats_per_byte_of_first_8_windows"].template get<std::vector<double>>();
  const Evaluation evaluation =
      evaluate(bundled_model<TypeParam>(), first_windows(expected.size()), window_bytes);
  ASSERT_EQ(evaluation.window_nats.size(), expected.size());
  // A prediction's nats move by at most twice what its logits do; the reference has 16 digits.
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(evaluation.window_nats[i], expected[i], 2 * logit_tolerance<TypeParam>()) << i;
}

TYPED_TEST(Reference, GreedyContinuation) {
  std::string text;
  const auto prompt = reference()["greedy_prompt"].template get<std::string>();
  const GenerateTimes times = generate(
      bundled_model<TypeParam>(), {.prompt = prompt, .tokens = 200, .sampler = {.temperature = 0}},
      [&](std::string_view piece) { text += piece; });
  EXPECT_EQ(text, prompt + reference()["greedy_200"].template get<std::string>());
  EXPECT_EQ(times.prefill_tokens, static_cast<Index>(prompt.size()));
  EXPECT_EQ(times.decode_tokens, 199);
}

#if defined(__OPTIMIZE__)  // It takes minutes without; the first windows are tested above.
TEST(ReferenceText, WholeEvaluation) {
  const Evaluation evaluation = evaluate(bundled_model<float>(), bundled_text(), window_bytes);
  EXPECT_EQ(evaluation.windows, reference()["windows"].get<Index>());
  EXPECT_EQ(evaluation.context, reference()["context"].get<Index>());
  EXPECT_EQ(evaluation.predictions, reference()["predictions"].get<Index>());
  // Errors of single predictions mostly cancel in the mean; 1e-5 is what float must reach.
  EXPECT_NEAR(evaluation.nats_per_byte, reference()["nats_per_byte"].get<double>(), 1e-5);
  EXPECT_NEAR(evaluation.bits_per_byte, reference()["bits_per_byte"].get<double>(), 1.5e-5);
  EXPECT_NEAR(evaluation.perplexity, reference()["perplexity"].get<double>(), 4e-5);

  const auto loads = reference()["expert_load"].get<std::vector<std::vector<Index>>>();
  const auto violations = reference()["max_violation"].get<std::vector<double>>();
  ASSERT_EQ(evaluation.layers.size(), loads.size());
  for (std::size_t layer = 0; layer < loads.size(); ++layer) {
    const LayerUse& use = evaluation.layers[layer];
    EXPECT_EQ(use.layer, static_cast<Index>(layer));
    ASSERT_EQ(use.expert_load.size(), loads[layer].size());
    // A choice may fall the other way where two router scores tie to within rounding.
    for (std::size_t e = 0; e < loads[layer].size(); ++e)
      EXPECT_LE(std::abs(use.expert_load[e] - loads[layer][e]), 2) << layer << " " << e;
    // Two choices of an even share, which is 8192.
    EXPECT_NEAR(use.max_violation, violations[layer], 2.0 / 8192);
    EXPECT_GT(use.load_entropy, 0.99 * std::log(8.0));
    EXPECT_GT(use.entropy, 0);
    EXPECT_LT(use.entropy, std::log(8.0));
  }
}
#endif

}  // namespace reference_test
}  // namespace language_model
