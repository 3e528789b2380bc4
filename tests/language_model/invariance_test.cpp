// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What must not change a result: the number of threads, and how positions come to the model.
#include <cstddef>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "language_model/bundled_model.hpp"
#include "language_model/evaluate.hpp"
#include "language_model/generate.hpp"

namespace language_model {
namespace invariance_test {

/// Logits of the tokens, read in pieces of the given lengths.
template <class Scalar>
Matrix<Scalar> read_in_pieces(const std::vector<Token>& tokens, const std::vector<Index>& pieces) {
  const Model<Scalar>& model = bundled_model<Scalar>();
  const auto length = static_cast<Index>(tokens.size());
  Session<Scalar> session(model.config(), 1, length);
  Matrix<Scalar> logits(length, model.config().vocab_size);  // (T, vocab_size)
  Index begin = 0;
  for (const Index piece : pieces) {
    const auto fresh =
        std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(piece));
    logits.middleRows(begin, piece) = model.logits(model.forward(fresh, session));
    begin += piece;
  }
  EXPECT_EQ(begin, length);
  EXPECT_EQ(session.length(), length);
  return logits;
}

std::vector<Token> some_tokens(std::size_t begin, std::size_t count) {
  return to_tokens(bundled_text().substr(begin, count), 128, "text");
}

TEST(Invariance, EvaluationHasTheSameBitsForAnyNumberOfThreads) {
  // Full windows of no multiple of a tile's rows, and a shorter one.
  const std::string text = bundled_text().substr(0, 5 * 100 + 38);
  const auto run = [&](int threads) {
    const ScopedThreads scope(threads);
    return evaluate(bundled_model<float>(), text, 100);
  };
  const Evaluation one = run(1);
  EXPECT_EQ(one.windows, 6);
  EXPECT_EQ(one.predictions, 537);
  for (const int threads : {2, 3, 7}) {
    const Evaluation many = run(threads);
    EXPECT_EQ(many.nats_per_byte, one.nats_per_byte) << threads;
    EXPECT_EQ(many.window_nats, one.window_nats) << threads;
    ASSERT_EQ(many.layers.size(), one.layers.size());
    for (std::size_t layer = 0; layer < one.layers.size(); ++layer) {
      EXPECT_EQ(many.layers[layer].expert_load, one.layers[layer].expert_load);
      EXPECT_EQ(many.layers[layer].entropy, one.layers[layer].entropy);
    }
  }
}

TEST(Invariance, LogitsHaveTheSameBitsForAnyNumberOfThreads) {
  const std::vector<Token> tokens = some_tokens(0, 70);
  const auto run = [&](int threads) {
    const ScopedThreads scope(threads);
    return read_in_pieces<float>(tokens, {67, 1, 2});
  };
  const Matrix<float> one = run(1);  // (70, 128)
  for (const int threads : {2, 3, 7}) EXPECT_EQ(run(threads), one) << threads;
}

TEST(Invariance, SampledTextIsTheSameForAnyNumberOfThreads) {
  const auto run = [&](int threads) {
    const ScopedThreads scope(threads);
    std::string text;
    generate(bundled_model<float>(), {.prompt = "hacker", .tokens = 40},
             [&](std::string_view piece) { text += piece; });
    return text;
  };
  const std::string one = run(1);
  for (const int threads : {2, 3, 7}) EXPECT_EQ(run(threads), one) << threads;
}

template <class Scalar>
void compare_decode_with_prefill() {
  const std::vector<Token> tokens = some_tokens(300, 75);
  const Matrix<Scalar> whole = read_in_pieces<Scalar>(tokens, {75});  // (75, 128)
  const Matrix<Scalar> single =                                       // (75, 128)
      read_in_pieces<Scalar>(tokens, std::vector<Index>(tokens.size(), 1));
  const Matrix<Scalar> mixed = read_in_pieces<Scalar>(tokens, {40, 1, 1, 33});  // (75, 128)
  // The sums are those of the same terms in another order.
  EXPECT_LE((whole - single).cwiseAbs().maxCoeff(), logit_tolerance<Scalar>());
  EXPECT_LE((whole - mixed).cwiseAbs().maxCoeff(), logit_tolerance<Scalar>());
}

TEST(Invariance, CachedDecodeEqualsPrefill) {
  compare_decode_with_prefill<float>();
  compare_decode_with_prefill<double>();
}

TEST(Invariance, SequencesOfOneSessionDoNotMeet) {
  const Model<double>& model = bundled_model<double>();
  const std::vector<Token> first = some_tokens(0, 45);
  const std::vector<Token> second = some_tokens(1000, 45);
  std::vector<Token> both = first;
  both.insert(both.end(), second.begin(), second.end());
  Session<double> session(model.config(), 2, 50);
  const Matrix<double> together = model.logits(model.forward(both, session));  // (90, 128)
  const double tolerance = logit_tolerance<double>();
  EXPECT_LE((together.topRows(45) - read_in_pieces<double>(first, {45})).cwiseAbs().maxCoeff(),
            tolerance);
  EXPECT_LE((together.bottomRows(45) - read_in_pieces<double>(second, {45})).cwiseAbs().maxCoeff(),
            tolerance);

  session.restart();
  EXPECT_EQ(model.logits(model.forward(both, session)), together);
}

TEST(Invariance, SessionRefusesWhatDoesNotFit) {
  const Model<float>& model = bundled_model<float>();
  Session<float> session(model.config(), 2, 3);
  const std::vector<Token> uneven(3, 10);
  const std::vector<Token> long_ones(8, 10);
  const std::vector<Token> unknown{10, 128};
  EXPECT_THROW(model.forward(uneven, session), std::invalid_argument);
  EXPECT_THROW(model.forward(long_ones, session), std::invalid_argument);
  EXPECT_THROW(model.forward(unknown, session), std::invalid_argument);
  EXPECT_EQ(session.length(), 0);
}

}  // namespace invariance_test
}  // namespace language_model
