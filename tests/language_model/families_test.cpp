// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Every family's architecture against plain loops, on tiny random checkpoints.
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "language_model/model.hpp"
#include "language_model/naive_model.hpp"
#include "language_model/tiny_families.hpp"

namespace language_model {
namespace families_test {

/// Longer than a tile has rows.
constexpr std::size_t length = 41;

std::vector<Token> some_tokens(Index vocab_size) {
  std::vector<Token> tokens;
  for (std::size_t t = 0; t < length; ++t)
    tokens.push_back(
        static_cast<Token>((t * t * 7 + 3 * t) % static_cast<std::size_t>(vocab_size)));
  return tokens;
}

/// Reads the first tokens at once and the rest one by one; compares all logits. A logit is a sum of
/// terms around 1 through at most 6 layers of at most 10 products of at most 32 terms: below 2000
/// roundings, each of relative size eps, which in the worst case all add up.
template <class Scalar>
void compare(const TinyCheckpoint& checkpoint, Index at_once) {
  const TemporaryFolder folder;
  checkpoint.write(folder);
  const Model<Scalar> model(moe::io::Checkpoint::open(folder.path()));
  const std::vector<Token> tokens = some_tokens(model.config().vocab_size);
  const auto expected = NaiveModel(checkpoint).logits(tokens);

  Session<Scalar> session(model.config(), 1, static_cast<Index>(length));
  double largest = 0;
  double error = 0;
  for (std::size_t begin = 0; begin < length;) {
    const std::size_t count = begin == 0 ? static_cast<std::size_t>(at_once) : 1;
    const auto fresh = std::span(tokens).subspan(begin, count);
    const Matrix<Scalar> logits = model.logits(model.forward(fresh, session));  // (count, vocab)
    for (Index r = 0; r < logits.rows(); ++r) {
      const auto& row = expected[begin + static_cast<std::size_t>(r)];
      ASSERT_EQ(row.size(), static_cast<std::size_t>(logits.cols()));
      for (Index i = 0; i < logits.cols(); ++i) {
        const double value = row[static_cast<std::size_t>(i)];
        largest = std::max(largest, std::abs(value));
        error = std::max(error, std::abs(static_cast<double>(logits(r, i)) - value));
      }
    }
    begin += count;
  }
  EXPECT_GT(largest, 0.5);
  EXPECT_LE(error, 2000 * static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * largest);
}

void compare_all(const TinyCheckpoint& checkpoint) {
  compare<double>(checkpoint, static_cast<Index>(length));
  compare<double>(checkpoint, 5);
  compare<float>(checkpoint, 35);
}

TEST(Families, MixtralWithGroupedQueriesAndSlidingWindow) {
  compare_all(tiny_mixtral());
}

TEST(Families, MixtralWithoutSlidingWindow) {
  TinyCheckpoint checkpoint = tiny_mixtral();
  checkpoint.config().erase("sliding_window");
  compare_all(checkpoint);
}

TEST(Families, Qwen3WithEverything) {
  compare_all(tiny_qwen3());
}

TEST(Families, Glm4WithQueryKeyNorm) {
  compare_all(tiny_glm4(true));
}

TEST(Families, Glm4WithoutQueryKeyNorm) {
  compare_all(tiny_glm4(false));
}

TEST(Families, ObserverSeesTheLayersThatHaveExperts) {
  const TemporaryFolder folder;
  tiny_qwen3().write(folder);
  const Model<float> model(moe::io::Checkpoint::open(folder.path()));
  Session<float> session(model.config(), 1, static_cast<Index>(length));
  std::vector<Index> seen;
  model.forward(
      some_tokens(23), session,
      [&](Index layer, moe::MatrixView<const float> x, const moe::Routing<float>& routing) {
        seen.push_back(layer);
        EXPECT_EQ(x.rows(), static_cast<Index>(length));
        EXPECT_EQ(x.cols(), model.config().d_model);
        EXPECT_EQ(routing.tokens(), static_cast<Index>(length));
        EXPECT_EQ(routing.top_k(), 3);
        EXPECT_EQ(routing.scores.cols(), 5);
      });
  EXPECT_EQ(seen, (std::vector<Index>{1, 5}));
}

/// The message of what loading the checkpoint throws.
std::string failure(const TinyCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.write(folder);
  try {
    const Model<float> model(moe::io::Checkpoint::open(folder.path()));
  } catch (const moe::FormatError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Families, MissingTensorsAreNamed) {
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.1.self_attn.v_proj.bias", "model.layers.2.self_attn.k_norm.weight",
        "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.2.input_layernorm.weight"}) {
    TinyCheckpoint checkpoint = tiny_glm4(true);
    checkpoint.remove(name);
    EXPECT_NE(failure(checkpoint).find(std::string("'") + name + "'"), std::string::npos)
        << failure(checkpoint);
  }
}

TEST(Families, ConfigurationsThatAreNotUnderstoodAreRefused) {
  const auto refused = [](const char* key, const nlohmann::json& value) {
    TinyCheckpoint checkpoint = tiny_mixtral();
    checkpoint.config()[key] = value;
    const std::string message = failure(checkpoint);
    EXPECT_TRUE(message.find(value.is_string() ? value.get<std::string>() : key) !=
                std::string::npos)
        << key << ": " << message;
  };
  refused("rope_scaling", {{"type", "linear"}, {"factor", 2.0}});
  refused("rope_parameters", {{"rope_theta", 1e4}});
  refused("hidden_act", "gelu");
  refused("model_type", "olmoe");
  refused("num_attention_heads", 0);
  refused("num_attention_heads", 5);
  refused("num_key_value_heads", 2);
  refused("vocab_size", "many");
  refused("max_position_embeddings", -1);
  refused("rms_norm_eps", -1.0);
  refused("rope_theta", nullptr);
  refused("sliding_window", 0);

  TinyCheckpoint checkpoint = tiny_mixtral();
  checkpoint.config()["rope_scaling"] = nullptr;
  EXPECT_EQ(failure(checkpoint), "nothing was thrown");
  checkpoint.config()["partial_rotary_factor"] = 1.5;
  EXPECT_NE(failure(checkpoint).find("rotary"), std::string::npos);
}

}  // namespace families_test
}  // namespace language_model
