// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See generate.hpp.
#include "language_model/generate.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "language_model/bytes.hpp"
#include "language_model/stopwatch.hpp"

namespace language_model {
namespace {

std::vector<Token> check_request(const ModelConfig& config, const GenerateOptions& options) {
  if (options.prompt.empty())
    throw std::invalid_argument("the prompt is empty: there must be a byte to continue from");
  constexpr Index most_tokens = Index{1} << 31;
  if (options.tokens <= 0 || options.tokens > most_tokens)
    throw std::invalid_argument("the number of tokens must be 1 to 2^31, not " +
                                std::to_string(options.tokens));
  if (options.context < 0 || options.context > config.max_positions)
    throw std::invalid_argument("the context must be at most " +
                                std::to_string(config.max_positions) +
                                ", the model's positions, not " + std::to_string(options.context));
  const auto room = config.max_positions - static_cast<Index>(options.prompt.size());
  if (options.context == 0 && options.tokens > room)
    throw std::invalid_argument("a prompt of " + std::to_string(options.prompt.size()) +
                                " bytes and " + std::to_string(options.tokens) +
                                " tokens are more than the model's " +
                                std::to_string(config.max_positions) + " positions");
  return to_tokens(options.prompt, config.vocab_size, "prompt");
}

}  // namespace

template <class Scalar>
GenerateTimes generate(const Model<Scalar>& model, const GenerateOptions& options,
                       const std::function<void(std::string_view)>& write) {
  std::vector<Token> text = check_request(model.config(), options);
  const auto prompt_size = static_cast<Index>(text.size());
  Sampler sampler(options.sampler);
  const Index all = prompt_size + options.tokens;
  Session<Scalar> session(model.config(), 1,
                          options.context > 0 ? std::min(options.context, all) : all);
  const auto read_last = [&](Index count) {
    const auto fresh = std::span<const Token>(text).last(static_cast<std::size_t>(count));
    const Matrix<Scalar> hidden = model.forward(fresh, session);       // (count, D)
    const Matrix<Scalar> logits = model.logits(hidden.bottomRows(1));  // (1, vocab_size)
    const Index bytes = std::min<Index>(256, logits.cols());
    return sampler(logits.row(0).head(bytes).template cast<double>().transpose());
  };

  GenerateTimes times;
  times.prefill_tokens = std::min(prompt_size, session.capacity());
  const Stopwatch prefill;
  Token token = read_last(times.prefill_tokens);
  times.prefill_seconds = prefill.seconds();

  write(options.prompt);
  times.decode_tokens = options.tokens - 1;
  const Stopwatch decode;
  for (Index written = 0; written < options.tokens; ++written) {
    if (written > 0) {
      const bool is_full = session.length() == session.capacity();
      if (is_full) session.restart();
      token = read_last(is_full ? (session.capacity() + 1) / 2 : 1);
    }
    text.push_back(token);
    const char byte = static_cast<char>(token);
    write({&byte, 1});
  }
  times.decode_seconds = decode.seconds();
  return times;
}

template GenerateTimes generate(const Model<float>&, const GenerateOptions&,
                                const std::function<void(std::string_view)>&);
template GenerateTimes generate(const Model<double>&, const GenerateOptions&,
                                const std::function<void(std::string_view)>&);

}  // namespace language_model
