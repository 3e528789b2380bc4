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
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <moe/io/bank_factory.hpp>
#include <moe/io/block_loader.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/gguf.hpp>
#include <moe/io/gguf_loader.hpp>
#include <moe/io/packed_loader.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/io/quantized_loader.hpp>
#include <moe/moe.hpp>

namespace {

using moe::Index;
using moe::Matrix;

constexpr const char* as_stored = "stored";

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

/// What an expert, a layer or a model loses.
struct Errors {
  Error weights;
  Error outputs;  // of experts, on all tokens
  Error block;    // of what tokens get from the experts that they choose; an expert has none

  void add(const Errors& other) {
    weights.add(other.weights);
    outputs.add(other.outputs);
    block.add(other.block);
  }
  void print(const std::string& layer, const std::string& expert) const {
    std::printf("%5s %6s %12.5f %12.5f", layer.c_str(), expert.c_str(), weights.relative(),
                outputs.relative());
    if (block.values > 0) std::printf(" %12.5f", block.relative());
    std::printf("\n");
  }
};

/// An MoE layer of a model.
struct Layer {
  Index number;
  moe::io::Stack stack = moe::io::Stack::encoder;

  /// Of its bank in the packed file, and of its tokens.
  std::string name() const { return moe::io::packed_bank_name(number, stack); }
  /// In the table: a decoder's layers are marked where there is an encoder, too.
  std::string label() const {
    return (stack == moe::io::Stack::decoder ? "d" : "") + std::to_string(number);
  }
};

/// Tokens (T, D) of a layer: those that are given, or normal ones.
Matrix<float> activations_of(const Options& options, const std::string& own, Index d_model) {
  if (!options.activations.empty()) {
    const auto tensors = moe::io::Tensors::open(options.activations);
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

/// What tokens (T, D) get from the routed experts that they choose, as these are and rounded,
/// expert by expert. Nothing is dropped.
class Block {
 public:
  template <class Router>
  Block(const Router& router, const Matrix<float>& x)
      : x_(x),
        exact_(Matrix<float>::Zero(x.rows(), x.cols())),
        rounded_(Matrix<float>::Zero(x.rows(), x.cols())) {
    router.route(x, {}, routing_);
    moe::DispatchPlan plan;
    moe::make_plan(routing_, {}, plan);
    moe::final_weights(routing_, plan, weights_);
  }

  /// Adds what the tokens that choose expert e get from it.
  template <class Exact, class Rounded>
  void add(Index e, const Exact& exact, const Rounded& rounded) {
    const bool on_inputs = routing_.weight_target == moe::WeightTarget::input;
    const auto input_scale = static_cast<float>(routing_.input_scale);
    std::vector<Index> tokens;
    std::vector<float> weights;
    for (Index t = 0; t < x_.rows(); ++t) {
      for (Index k = 0; k < routing_.top_k(); ++k) {
        if (routing_.experts(t, k) != e) continue;
        tokens.push_back(t);
        weights.push_back(weights_(t, k));
      }
    }
    if (tokens.empty()) return;
    Matrix<float> rows(static_cast<Index>(tokens.size()), x_.cols());
    for (Index i = 0; i < rows.rows(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      rows.row(i) = x_.row(tokens[at]) * (input_scale * (on_inputs ? weights[at] : 1));
    }
    const auto add_to = [&](Matrix<float>& sums, const Matrix<float>& outputs) {
      for (std::size_t i = 0; i < tokens.size(); ++i)
        sums.row(tokens[i]) += (on_inputs ? 1 : weights[i]) * outputs.row(static_cast<Index>(i));
    };
    add_to(exact_, outputs_of(exact, rows));
    add_to(rounded_, outputs_of(rounded, rows));
  }

  Error error() const {
    Error error;
    error.add(exact_, rounded_);
    return error;
  }

 private:
  const Matrix<float>& x_;
  moe::Routing<float> routing_;
  Matrix<float> weights_;  // (T, K)
  Matrix<float> exact_;
  Matrix<float> rounded_;
};

void show_progress(const std::string& layer, Index expert, Index experts) {
  if (isatty(STDERR_FILENO) == 0) return;
  if (expert < experts) {
    std::fprintf(stderr, "\rlayer %s, expert %td of %td", layer.c_str(), expert, experts);
  } else {
    std::fputs("\r\033[K", stderr);
  }
}

moe::io::QuantizedLoading loading_of(const Options& options) {
  moe::io::QuantizedLoading loading{.search = options.no_search ? moe::ScaleSearch::nearest
                                                                : moe::ScaleSearch::least_error};
  if (options.weights != as_stored) loading.format = moe::expert_format_of(options.weights);
  return loading;
}

/// Quantises one layer's experts one by one, writes them, and prints what they lose.
template <class Reader>
Errors quantize_layer(const Reader& reader, const moe::io::LayerConfig& config, const Layer& layer,
                      const std::vector<moe::ExpertFormat>& formats, const Options& options,
                      moe::io::PackedWriter& writer) {
  const std::string name = layer.name();
  const Matrix<float> x = activations_of(options, name, config.d_model);
  moe::io::QuantizedLoading loading = loading_of(options);
  if (options.calibrate) loading.calibration = x;
  moe::ExpertsConfig sizes = reader.sizes();
  const Index experts = sizes.num_experts;
  sizes.num_experts = 1;
  const std::string label = layer.label();
  Errors all;
  Block block(reader.router(), x);
  moe::io::detail::with_activation(config, reader.is_gated(), [&](auto activation) {
    using Activation = decltype(activation);
    moe::FeedForwardExperts<float, Activation> floats(sizes, activation);
    Matrix<float> up_biases;
    Matrix<float> down_biases;
    for (Index e = 0; e < experts; ++e) {
      show_progress(label, e, experts);
      moe::QuantizedExperts<Activation> bank(sizes, formats[static_cast<std::size_t>(e)],
                                             activation);
      moe::io::detail::load_quantized_expert(reader, e, loading, bank, 0);
      writer.write_expert(name, e, bank.expert_bytes(0));
      if (sizes.biases) {
        if (e == 0) {
          up_biases.resize(experts, bank.up_bias().cols());
          down_biases.resize(experts, bank.down_bias().cols());
        }
        up_biases.row(e) = bank.up_bias().row(0);
        down_biases.row(e) = bank.down_bias().row(0);
      }
      const moe::ExpertMatrices<float> expert = reader.matrices(e);
      floats.set_expert(0, expert.weights());
      const moe::ExpertMatrices<float> rounded = bank.expert(0);
      Errors errors;
      errors.weights.add(expert.gate, rounded.gate);
      errors.weights.add(expert.up, rounded.up);
      errors.weights.add(expert.down, rounded.down);
      errors.outputs.add(outputs_of(floats, x), outputs_of(bank, x));
      block.add(e, floats, bank);
      all.add(errors);
      show_progress(label, experts, experts);
      errors.print(label, std::to_string(e));
    }
    if (sizes.biases) writer.write_biases(name, up_biases, down_biases);
  });
  all.block = block.error();
  all.print(label, "all");
  return all;
}

/// Quantises all layers of a model. `reader_of(layer)` reads a layer's experts.
template <class ReaderOf>
void quantize_layers(const std::vector<Layer>& layers, const moe::io::LayerConfig& config,
                     const Options& options, ReaderOf&& reader_of) {
  if (layers.empty()) throw std::invalid_argument(options.model + ": has no MoE layers");
  std::map<std::string, moe::io::PackedBank> banks;
  for (const Layer& layer : layers) {
    const auto reader = reader_of(layer);
    const auto formats = moe::io::detail::formats_of(reader, loading_of(options));
    banks[layer.name()] = moe::io::detail::with_activation(
        config, reader.is_gated(),
        [&](auto activation) { return moe::io::describe(reader.sizes(), formats, activation); });
  }
  moe::io::PackedWriter writer(options.out, banks, {}, {{"source", options.model}});
  std::printf("relative errors, %s\n", options.weights.c_str());
  std::printf("layer expert      weights      outputs        block\n");
  Errors all;
  for (const Layer& layer : layers)
    all.add(quantize_layer(reader_of(layer), config, layer, banks[layer.name()].formats, options,
                           writer));
  all.print("all", "all");
  writer.finish();
  const moe::io::PackedFile file(options.out);
  double bytes = 0;
  for (const auto& [name, tensor] : file.file().tensors())
    bytes += static_cast<double>(tensor.data.size());
  std::printf("%zu layers, %.1f MB: %s\n", layers.size(), bytes / 1e6, options.out.c_str());
}

/// Throws  std::invalid_argument if the packed file would take the place of what it is made from.
void check_that_inputs_stay(const Options& options, std::vector<std::string> inputs) {
  if (!options.activations.empty()) {
    const auto files = moe::io::Tensors::open(options.activations).files();
    inputs.insert(inputs.end(), files.begin(), files.end());
  }
  for (const std::string& input : inputs) {
    // The writer makes the second one first, and renames it.
    for (const std::string& out : {options.out, options.out + ".part"}) {
      std::error_code none;  // A file that is not there yet is no input.
      if (std::filesystem::equivalent(out, input, none))
        throw std::invalid_argument(out + ": is an input, so it is not overwritten");
    }
  }
}

void quantize(const Options& options) {
  if (options.weights == as_stored && (options.calibrate || options.no_search))
    throw std::invalid_argument(
        "--weights stored takes codes as they are: there is nothing to search");
  if (options.model.ends_with(".gguf")) {
    const moe::io::GgufFile file(options.model);
    check_that_inputs_stay(options, file.files());
    std::vector<Layer> layers;
    for (const Index layer : moe::io::moe_layers(file)) layers.push_back({layer});
    const moe::io::LayerConfig config = moe::io::layer_config(file);
    quantize_layers(layers, config, options, [&](const Layer& layer) {
      return moe::io::detail::GgufBlock(file, config, layer.number);
    });
    return;
  }
  const auto checkpoint = moe::io::Checkpoint::open(options.model);
  std::vector<std::string> inputs = checkpoint.tensors().files();
  inputs.push_back(checkpoint.config_source());
  check_that_inputs_stay(options, inputs);
  std::vector<Layer> layers;
  for (const Index layer : checkpoint.moe_layers()) layers.push_back({layer});
  if (checkpoint.is_encoder_decoder())
    for (const Index layer : checkpoint.moe_layers(moe::io::Stack::decoder))
      layers.push_back({layer, moe::io::Stack::decoder});
  const moe::io::LayerConfig config = checkpoint.layer_config();
  quantize_layers(layers, config, options, [&](const Layer& layer) {
    return moe::io::detail::BlockReader<float>(checkpoint.tensors(), config,
                                               checkpoint.block_prefix(layer.number, layer.stack));
  });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quantises the experts of a checkpoint into a packed file.", "quantize");
  Options options;
  app.add_option("--model", options.model,
                 "a .safetensors file, a .safetensors.index.json or the folder of one, or a .gguf "
                 "file (of several, the first)")
      ->required();
  app.add_option("--out", options.out, "the packed file to write")->required();
  app.add_option("--weights", options.weights,
                 "the format, or those of gate and up, and of down: int4-g32,int8; or stored: the "
                 "codes of fp8, mxfp4, Q8_0 and so on, which all experts must have")
      ->capture_default_str();
  CLI::Option* const no_search =
      app.add_flag("--no-search", options.no_search,
                   "take scales from the largest weights, not those of the least error");
  CLI::Option* const activations =
      app.add_option("--activations", options.activations,
                     "a .safetensors file of what blocks get, [T, D]: tensors layers.0 and so on, "
                     "those of a decoder beside an encoder decoder.layers.0, or x for all; outputs "
                     "are compared on them, without it on normal ones: every expert's on all, and "
                     "what tokens get from those that they choose");
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
