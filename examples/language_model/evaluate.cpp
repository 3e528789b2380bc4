// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See evaluate.hpp.
#include "language_model/evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>

#include <moe/losses/metrics.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/bytes.hpp"
#include "language_model/stopwatch.hpp"

namespace language_model {
namespace {

/// Tokens that are read at once. Several windows go together, so that each expert has enough rows
/// to keep all threads busy; more than this many gain nothing and cost memory.
constexpr Index batch_tokens = 4096;

/// Sums up the routings of one layer.
class UseCounter {
 public:
  template <class Scalar>
  void add(const moe::Routing<Scalar>& routing) {
    const std::vector<Index> load = moe::metrics::expert_load(routing);
    load_.resize(load.size());
    std::transform(load.begin(), load.end(), load_.begin(), load_.begin(), std::plus<>());
    entropy_ += moe::metrics::router_entropy(routing) * static_cast<double>(routing.tokens());
    tokens_ += routing.tokens();
  }

  LayerUse use(Index layer) const {
    return {.layer = layer,
            .expert_load = load_,
            .max_violation = moe::metrics::max_violation(load_),
            .entropy = entropy_ / static_cast<double>(tokens_),
            .load_entropy = moe::metrics::load_entropy(load_)};
  }

  bool empty() const noexcept { return tokens_ == 0; }

 private:
  std::vector<Index> load_;  // (E)
  double entropy_ = 0;
  Index tokens_ = 0;
};

/// -log softmax(logits)[target].
template <class Row>
double surprise(const Row& logits, Token target) {
  const auto largest = static_cast<double>(logits.maxCoeff());
  double sum = 0;
  for (Index i = 0; i < logits.size(); ++i)
    sum += std::exp(static_cast<double>(logits[i]) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[target]);
}

/// The nats of each target. Logits of a large vocabulary are large, so they come piece by piece.
template <class Scalar>
void score(const Model<Scalar>& model, const Matrix<Scalar>& hidden, std::span<const Token> targets,
           std::span<double> nats) {
  const Index piece = std::max(tile_rows, (Index{1} << 22) / model.config().vocab_size);
  for (Index begin = 0; begin < hidden.rows(); begin += piece) {
    const Index rows = std::min(piece, hidden.rows() - begin);
    const Matrix<Scalar> logits = model.logits(hidden.middleRows(begin, rows));  // (rows, vocab)
    moe::parallel::for_each_block(rows, tile_rows, [&](Index first, Index end) {
      for (Index r = first; r < end; ++r) {
        const auto t = static_cast<std::size_t>(begin + r);
        nats[t] = surprise(logits.row(r), targets[t]);
      }
    });
  }
}

void check_request(const ModelConfig& config, std::string_view text, Index context) {
  if (context <= 0 || context > config.max_positions)
    throw std::invalid_argument("the context must be 1 to " + std::to_string(config.max_positions) +
                                ", the model's positions, not " + std::to_string(context));
  if (text.size() < 2)
    throw std::invalid_argument("the text has " + std::to_string(text.size()) +
                                " bytes: at least 2 are needed for a prediction");
}

/// The nats of every prediction, in the text's order.
template <class Scalar>
std::vector<double> score_text(const Model<Scalar>& model, std::span<const Token> tokens,
                               Index context, std::vector<UseCounter>& uses,
                               const Progress& progress) {
  const Index predictions = static_cast<Index>(tokens.size()) - 1;
  const Index windows = (predictions + context - 1) / context;
  const Index full_windows = predictions / context;
  const Index batch_windows =
      std::clamp<Index>(batch_tokens / context, 1, std::max<Index>(1, full_windows));
  const BlockObserver<Scalar> observer = [&](Index layer, MatrixView<const Scalar> /*x*/,
                                             const moe::Routing<Scalar>& routing) {
    uses[static_cast<std::size_t>(layer)].add(routing);
  };
  std::vector<double> nats(static_cast<std::size_t>(predictions));
  for (Index window = 0; window < windows;) {
    const bool is_last = window == full_windows;  // The shorter one goes alone.
    const Index count = is_last ? 1 : std::min(batch_windows, full_windows - window);
    const Index begin = window * context;
    const auto first = static_cast<std::size_t>(begin);
    const auto size = static_cast<std::size_t>(std::min(count * context, predictions - begin));
    Session<Scalar> session(model.config(), count, std::min(context, predictions));
    const Matrix<Scalar> hidden =
        model.forward(tokens.subspan(first, size), session, observer);  // (T, D)
    score(model, hidden, tokens.subspan(first + 1, size), std::span(nats).subspan(first, size));
    window += count;
    if (progress) progress(window, windows);
  }
  return nats;
}

}  // namespace

template <class Scalar>
Evaluation evaluate(const Model<Scalar>& model, std::string_view text, Index context,
                    const Progress& progress) {
  check_request(model.config(), text, context);
  const std::vector<Token> tokens = to_tokens(text, model.config().vocab_size, "text");
  const Stopwatch stopwatch;
  std::vector<UseCounter> uses(static_cast<std::size_t>(model.config().num_layers));
  const std::vector<double> nats = score_text<Scalar>(model, tokens, context, uses, progress);

  Evaluation result;
  result.context = context;
  result.predictions = static_cast<Index>(nats.size());
  for (auto window = nats.begin(); window != nats.end();) {
    const auto end = window + std::min<Index>(context, nats.end() - window);
    const double sum = std::accumulate(window, end, 0.0);
    result.window_nats.push_back(sum / static_cast<double>(end - window));
    result.nats_per_byte += sum;
    window = end;
  }
  result.windows = static_cast<Index>(result.window_nats.size());
  result.nats_per_byte /= static_cast<double>(result.predictions);
  if (!std::isfinite(result.nats_per_byte))
    throw std::runtime_error("the model gave logits that are not finite");
  result.bits_per_byte = result.nats_per_byte / std::log(2.0);
  result.perplexity = std::exp(result.nats_per_byte);
  for (std::size_t layer = 0; layer < uses.size(); ++layer)
    if (!uses[layer].empty()) result.layers.push_back(uses[layer].use(static_cast<Index>(layer)));
  result.seconds = stopwatch.seconds();
  result.tokens_per_second = rate(static_cast<double>(result.predictions), result.seconds);
  return result;
}

template Evaluation evaluate(const Model<float>&, std::string_view, Index, const Progress&);
template Evaluation evaluate(const Model<double>&, std::string_view, Index, const Progress&);

}  // namespace language_model
