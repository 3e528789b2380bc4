// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From a checkpoint to a packed file: the experts of every MoE layer in few bits, one in memory at
// a time, and what that costs, by layer and expert.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <moe/io/bank_factory.hpp>
#include <moe/io/block_loader.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/moe.hpp>

namespace {

using moe::Index;
using moe::Matrix;

struct Options {
  std::string model;
  std::string out;
  std::string weights = "int4-g32";
  bool no_search = false;
  bool calibrate = false;
  std::string activations;
  Index tokens = 64;
};

/// Sums of squares of differences and of what they are differences of.
struct Error {
  double differences = 0;
  double values = 0;

  void add(const Matrix<float>& exact, const Matrix<float>& other) {
    differences += (other - exact).cast<double>().squaredNorm();
    values += exact.cast<double>().squaredNorm();
  }
  void add(const Error& other) {
    differences += other.differences;
    values += other.values;
  }
  double relative() const { return values > 0 ? std::sqrt(differences / values) : 0; }
};

/// Tokens (T, D) of a layer: those that are given, or normal ones.
Matrix<float> activations_of(const Options& options, Index layer, Index d_model) {
  if (!options.activations.empty()) {
    const auto tensors = moe::io::Tensors::open(options.activations);
    const std::string own = moe::io::packed_bank_name(layer);
    const std::string name = tensors.contains(own) ? own : "x";
    return tensors.matrix<float>(name, tensors.dimension(name, 0), d_model);
  }
  Matrix<float> x(options.tokens, d_model);
  for (Index i = 0; i < x.size(); ++i)
    x.data()[i] =
        static_cast<float>(moe::detail::draw(moe::Noise::normal, 1, static_cast<std::uint64_t>(i)));
  return x;
}

/// All tokens through the only expert of a bank.
template <class Bank>
Matrix<float> outputs_of(const Bank& bank, const Matrix<float>& x) {
  moe::DispatchPlan plan;
  moe::make_full_plan(x.rows(), 1, plan);
  Matrix<float> y(x.rows(), x.cols());
  moe::Scratch scratch;
  bank.forward({x, plan}, y, scratch);
  return y;
}

void show_progress(Index layer, Index expert, Index experts) {
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, expert < experts ? "\rlayer %td, expert %td of %td" : "\r\033[K", layer,
               expert, experts);
}

/// Quantises one layer's experts one by one, writes them, and prints what they lose.
void quantize_layer(const moe::io::detail::BlockReader<float>& reader,
                    const moe::io::LayerConfig& config, Index layer,
                    const moe::ExpertFormat& format, const Options& options,
                    moe::io::PackedWriter& writer) {
  const std::string name = moe::io::packed_bank_name(layer);
  const Matrix<float> x = activations_of(options, layer, config.d_model);
  moe::ExpertsConfig sizes = reader.sizes();
  const Index experts = sizes.num_experts;
  sizes.num_experts = 1;
  Error all_weights;
  Error all_outputs;
  moe::io::detail::with_activation(config, reader.is_gated(), [&](auto activation) {
    using Activation = decltype(activation);
    moe::FeedForwardExperts<float, Activation> floats(sizes, activation);
    moe::QuantizedExperts<Activation> bank(sizes, format, activation);
    Matrix<float> up_biases(experts, bank.up_bias().cols());
    Matrix<float> down_biases(experts, bank.down_bias().cols());
    for (Index e = 0; e < experts; ++e) {
      show_progress(layer, e, experts);
      const moe::ExpertMatrices<float> expert = reader.matrices(e);
      floats.set_expert(0, expert.weights());
      moe::ExpertMoments moments;
      if (options.calibrate) moments = moe::expert_moments(expert, activation, x);
      bank.set_expert(0, expert.weights(),
                      moments.options(options.no_search ? moe::ScaleSearch::nearest
                                                        : moe::ScaleSearch::least_error));
      writer.write_expert(name, e, bank.expert_bytes(0));
      if (sizes.biases) {
        up_biases.row(e) = bank.up_bias().row(0);
        down_biases.row(e) = bank.down_bias().row(0);
      }
      const moe::ExpertMatrices<float> rounded = bank.expert(0);
      Error weights;
      weights.add(expert.gate, rounded.gate);
      weights.add(expert.up, rounded.up);
      weights.add(expert.down, rounded.down);
      Error outputs;
      outputs.add(outputs_of(floats, x), outputs_of(bank, x));
      all_weights.add(weights);
      all_outputs.add(outputs);
      show_progress(layer, experts, experts);
      std::printf("%5td %6td %12.5f %12.5f\n", layer, e, weights.relative(), outputs.relative());
    }
    if (sizes.biases) writer.write_biases(name, up_biases, down_biases);
  });
  std::printf("%5td %6s %12.5f %12.5f\n", layer, "all", all_weights.relative(),
              all_outputs.relative());
}

void quantize(const Options& options) {
  const auto checkpoint = moe::io::Checkpoint::open(options.model);
  const moe::io::LayerConfig config = checkpoint.layer_config();
  const moe::ExpertFormat format = moe::expert_format_of(options.weights);
  const std::vector<Index> layers = checkpoint.moe_layers();
  if (layers.empty()) throw std::invalid_argument(options.model + ": has no MoE layers");
  const auto reader_of = [&](Index layer) {
    return moe::io::detail::BlockReader<float>(checkpoint.tensors(), config,
                                               checkpoint.block_prefix(layer));
  };
  std::map<std::string, moe::io::PackedBank> banks;
  for (const Index layer : layers) {
    const auto reader = reader_of(layer);
    banks[moe::io::packed_bank_name(layer)] =
        moe::io::detail::with_activation(config, reader.is_gated(), [&](auto activation) {
          return moe::io::describe(
              reader.sizes(), std::vector(static_cast<std::size_t>(config.num_experts), format),
              activation);
        });
  }
  moe::io::PackedWriter writer(options.out, banks, {}, {{"source", options.model}});
  std::printf("relative errors, %s\n", options.weights.c_str());
  std::printf("layer expert      weights      outputs\n");
  for (const Index layer : layers)
    quantize_layer(reader_of(layer), config, layer, format, options, writer);
  writer.finish();
  const moe::io::PackedFile file(options.out);
  double bytes = 0;
  for (const auto& [name, tensor] : file.file().tensors())
    bytes += static_cast<double>(tensor.data.size());
  std::printf("%zu layers, %.1f MB: %s\n", layers.size(), bytes / 1e6, options.out.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quantises the experts of a checkpoint into a packed file.", "quantize");
  Options options;
  app.add_option("--model", options.model,
                 "a .safetensors file, a .safetensors.index.json or the folder of one")
      ->required();
  app.add_option("--out", options.out, "the packed file to write")->required();
  app.add_option("--weights", options.weights,
                 "the format, or those of gate and up, and of down: int4-g32,int8")
      ->capture_default_str();
  CLI::Option* const no_search =
      app.add_flag("--no-search", options.no_search,
                   "take scales from the largest weights, not those of the least error");
  CLI::Option* const activations = app.add_option(
      "--activations", options.activations,
      "a .safetensors file of what blocks get, [T, D]: tensors layers.0 and so on, or x for all; "
      "outputs are compared on them, without it on normal ones");
  app.add_flag("--calibrate", options.calibrate,
               "let errors of weights count as the activations multiply them")
      ->needs(activations)
      ->excludes(no_search);
  app.add_option("--tokens", options.tokens, "how many normal ones")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    quantize(options);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "quantize: %s\n", error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quantize: %s\n", error.what());
  }
  return 1;
}
