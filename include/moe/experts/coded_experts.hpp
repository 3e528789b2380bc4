// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a bank of quantised experts has learnt: codes, scales and biases, and where they lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/coded_matrix.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/packed_experts.hpp"
#include "moe/experts/quantize.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// The formats of an expert's matrices: gate and up, which lie in one, and down.
struct ExpertFormat {
  WeightFormat up{};
  WeightFormat down{};

  friend bool operator==(const ExpertFormat&, const ExpertFormat&) = default;
};

/// By the names that format_of knows: of all matrices, or of gate and up, and of down:
/// "int4-g32,int8".
///
/// Throws  as format_of.
inline ExpertFormat expert_format_of(std::string_view names) {
  const std::size_t comma = names.find(',');
  const WeightFormat up = format_of(names.substr(0, comma));
  return {up, comma == std::string_view::npos ? up : format_of(names.substr(comma + 1))};
}

/// How an expert is quantised.
///
/// Shapes  up_importance (D), down_importance (F): what squared errors count at each inner value,
///         or empty.
struct QuantizeOptions {
  ScaleSearch search = ScaleSearch::least_error;
  std::span<const float> up_importance = {};
  std::span<const float> down_importance = {};
};

/// An expert that is there in codes. Each function gives those of one output, and is called by
/// several threads at once; `gate` is empty where the expert has none.
struct CodedExpertSource {
  std::function<CodedOutput(Index)> gate;
  std::function<CodedOutput(Index)> up;
  std::function<CodedOutput(Index)> down;
};

/// The matrices of one expert as MatrixLayout says: up, with the gate in it, then down.
struct ExpertLayout {
  MatrixLayout up{};
  MatrixLayout down{};

  ExpertLayout() = default;
  ExpertLayout(const ExpertsConfig& config, bool gated, const ExpertFormat& format)
      : up(format.up,
           gated ? (config.d_ff + kernels::gated_width - 1) / kernels::gated_width *
                       kernels::panel_width
                 : config.d_ff,
           config.d_model),
        down(format.down, config.d_model, config.d_ff) {}

  Index bytes() const noexcept { return up.bytes() + down.bytes(); }
};

namespace detail {

/// The outputs of a matrix, quantised one by one: see quantize_output. All that is given lives as
/// long as what is returned.
inline std::function<CodedOutput(Index)> quantized_outputs(const MatrixLayout& layout,
                                                           MatrixView<const float> matrix,
                                                           std::span<const float> importance,
                                                           ScaleSearch search) {
  return [&layout, matrix, importance, search](Index o) {
    return quantize_output(layout, {matrix.row(o), static_cast<std::size_t>(matrix.cols())},
                           importance, search);
  };
}

/// The layout of each of E experts.
///
/// Throws  std::invalid_argument, beginning with `where`, if a size is not positive, the weights
///         exceed all memory or there is no such format; ShapeError if there are not E formats.
inline std::vector<ExpertLayout> coded_layouts(const char* where, const ExpertsConfig& config,
                                               bool gated,
                                               const std::vector<ExpertFormat>& formats) {
  check(config.num_experts > 0, where, "num_experts must be positive");
  check(config.d_model > 0, where, "d_model must be positive");
  check(config.d_ff > 0, where, "d_ff must be positive");
  check_size(where, "formats.size()", config.num_experts, static_cast<Index>(formats.size()));
  // With gate, up and down, scales and what is filled up, an expert takes less than 32 bytes for
  // each weight of one matrix that is filled up to panels and groups.
  constexpr Index most = std::numeric_limits<Index>::max() / 64;
  check(config.d_model < most && config.d_ff < most, where, "the sizes are too large");
  product(where, product(where, config.num_experts, config.d_model + 128),
          product(where, config.d_ff + 128, 32));
  std::vector<ExpertLayout> layouts;
  layouts.reserve(formats.size());
  for (const ExpertFormat& format : formats) layouts.emplace_back(config, gated, format);
  return layouts;
}

/// Weights and biases of E experts, whose formats may differ. Copies share the weights until one of
/// them is changed.
class CodedExperts {
 public:
  /// Zeros.
  ///
  /// Throws  std::invalid_argument if a size is not positive or there is no such format; ShapeError
  ///         if there are not E formats.
  CodedExperts(const char* where, const ExpertsConfig& its_config, bool gated,
               const std::vector<ExpertFormat>& formats)
      : config(its_config), gated_(gated), layouts_(coded_layouts(where, config, gated, formats)) {
    make_room();
    weights_ = std::make_shared<AlignedBuffer<std::byte>>(bytes_);
    const std::byte* at = weights_->data();
    for (const ExpertLayout& layout : layouts_) {
      experts_.push_back(at);
      at += layout.bytes();
    }
  }

  /// Experts in memory that `owner` keeps.
  CodedExperts(const char* where, const ExpertsConfig& its_config, bool gated,
               const std::vector<ExpertFormat>& formats, std::vector<const std::byte*> experts,
               std::shared_ptr<const void> owner)
      : config(its_config),
        gated_(gated),
        layouts_(coded_layouts(where, config, gated, formats)),
        experts_(std::move(experts)),
        owner_(std::move(owner)) {
    check(owner_ != nullptr, where, "experts in somebody's memory need an owner");
    check_size(where, "experts.size()", config.num_experts, static_cast<Index>(experts_.size()));
    make_room();
  }

  std::size_t bytes() const noexcept { return bytes_; }
  const ExpertLayout& layout(Index e) const noexcept {
    return layouts_[static_cast<std::size_t>(e)];
  }
  const std::byte* up(Index e) const noexcept { return experts_[static_cast<std::size_t>(e)]; }
  const std::byte* down(Index e) const noexcept { return up(e) + layout(e).up.bytes(); }
  const float* up_bias_of(Index e, Index panel) const noexcept {
    return bias_of(up_bias, e, panel);
  }
  const float* down_bias_of(Index e, Index panel) const noexcept {
    return bias_of(down_bias, e, panel);
  }

  void check_expert(const char* where, Index e) const {
    check(e >= 0 && e < config.num_experts, where, "expert is out of range");
  }

  /// Quantises one expert's matrices, in parallel over outputs.
  void set(const char* where, Index e, const ExpertWeights<float>& weights,
           const QuantizeOptions& options) {
    check_expert(where, e);
    check_expert_shapes(where, config, gated_, weights);
    const ExpertLayout& its = layout(e);
    put(e, quantized_outputs(its.up, weights.gate, options.up_importance, options.search),
        quantized_outputs(its.up, weights.up, options.up_importance, options.search),
        quantized_outputs(its.down, weights.down, options.down_importance, options.search));
    set_biases(e, weights);
  }

  /// Shapes  as ExpertWeights, checked before.
  void set_biases(Index e, const ExpertWeights<float>& weights) {
    if (!config.biases) return;
    if (gated_) put_bias(e, PanelRole::gate, weights.gate_bias, up_bias);
    put_bias(e, up_role(), weights.up_bias, up_bias);
    put_bias(e, PanelRole::plain, weights.down_bias, down_bias);
  }

  /// Takes over one expert's matrices code by code, in parallel over outputs.
  void set_codes(const char* where, Index e, const CodedExpertSource& source) {
    check_expert(where, e);
    const auto checked = [&](const MatrixLayout& matrix,
                             const std::function<CodedOutput(Index)>& codes) {
      return [where, &matrix, &codes](Index o) {
        CodedOutput output = codes(o);
        check_output(where, matrix, output);
        return output;
      };
    };
    const ExpertLayout& its = layout(e);
    put(e, checked(its.up, source.gate), checked(its.up, source.up),
        checked(its.down, source.down));
  }

  /// Copies an expert in as it lies.
  void set_bytes(Index e, std::span<const std::byte> bytes) {
    const std::shared_ptr<const void> kept = owner_;  // The bytes may be those of another expert.
    std::byte* const to = own(e);
    std::memmove(to, bytes.data(), bytes.size());
  }

  /// One expert as its codes and scales say.
  ExpertMatrices<float> get(const char* where, Index e) const {
    check_expert(where, e);
    ExpertMatrices<float> matrices;
    const auto decode = [&](const MatrixLayout& from, const std::byte* matrix, PanelRole role,
                            Index outputs, Matrix<float>& to) {
      to.resize(outputs, from.inner);
      parallel::for_each_block(outputs, kernels::panel_width, [&](Index begin, Index end) {
        for (Index o = begin; o < end; ++o)
          decode_output(from, get_output(from, panel_column(role, o), matrix), row_data(to, o));
      });
    };
    if (gated_) decode(layout(e).up, up(e), PanelRole::gate, config.d_ff, matrices.gate);
    decode(layout(e).up, up(e), up_role(), config.d_ff, matrices.up);
    decode(layout(e).down, down(e), PanelRole::plain, config.d_model, matrices.down);
    if (!config.biases) return matrices;
    if (gated_) matrices.gate_bias = get_bias(up_bias, e, PanelRole::gate, config.d_ff);
    matrices.up_bias = get_bias(up_bias, e, up_role(), config.d_ff);
    matrices.down_bias = get_bias(down_bias, e, PanelRole::plain, config.d_model);
    return matrices;
  }

  /// From now on, expert e is at `data`, in somebody else's memory.
  void view(Index e, const std::byte* data) noexcept {
    experts_[static_cast<std::size_t>(e)] = data;
  }

  /// An expert's bytes, for writing.
  std::byte* own(Index e) {
    if (weights_ == nullptr || weights_.use_count() > 1) {
      auto copy = std::make_shared<AlignedBuffer<std::byte>>(bytes_);
      std::byte* at = copy->data();
      for (Index i = 0; i < config.num_experts; ++i) {
        const std::byte*& expert = experts_[static_cast<std::size_t>(i)];
        const auto bytes = static_cast<std::size_t>(layout(i).bytes());
        std::copy_n(expert, bytes, at);
        expert = at;
        at += bytes;
      }
      weights_ = std::move(copy);
      owner_.reset();
    }
    return weights_->data() + (up(e) - weights_->data());
  }

  ExpertsConfig config;
  Matrix<float> up_bias;    // (E, columns of up), with biases only
  Matrix<float> down_bias;  // (E, columns of down), with biases only

 private:
  /// Puts what the functions give of each output in the place of expert e, as a whole: where one
  /// throws, the expert stays as it was.
  template <class Gate, class Up, class Down>
  void put(Index e, const Gate& gate, const Up& up_output, const Down& down_output) {
    const ExpertLayout& its = layout(e);
    AlignedBuffer<std::byte> made(static_cast<std::size_t>(its.bytes()));
    const auto fill = [](const MatrixLayout& matrix, std::byte* to, PanelRole role, Index outputs,
                         const auto& output) {
      // Outputs of one panel may share bytes, so that a task has all of a panel's.
      constexpr Index width = kernels::gated_width;
      const Index step = role == PanelRole::plain ? 2 * width : width;
      parallel::for_each_block(outputs, step, [&](Index begin, Index end) {
        for (Index o = begin; o < end; ++o)
          put_output(matrix, panel_column(role, o), output(o), to);
      });
    };
    if (gated_) fill(its.up, made.data(), PanelRole::gate, config.d_ff, gate);
    fill(its.up, made.data(), up_role(), config.d_ff, up_output);
    fill(its.down, made.data() + its.up.bytes(), PanelRole::plain, config.d_model, down_output);
    set_bytes(e, {made.data(), static_cast<std::size_t>(its.bytes())});
  }

  /// Biases of zeros, and the count of the weights' bytes.
  void make_room() {
    for (const ExpertLayout& layout : layouts_) bytes_ += static_cast<std::size_t>(layout.bytes());
    if (!config.biases) return;
    up_bias.setZero(config.num_experts, layouts_[0].up.panels * kernels::panel_width);
    down_bias.setZero(config.num_experts, layouts_[0].down.panels * kernels::panel_width);
  }

  PanelRole up_role() const noexcept { return gated_ ? PanelRole::up : PanelRole::plain; }
  static const float* bias_of(const Matrix<float>& biases, Index e, Index panel) noexcept {
    return biases.size() == 0 ? nullptr : row_data(biases, e) + panel * kernels::panel_width;
  }

  bool gated_;
  std::vector<ExpertLayout> layouts_;                  // (E)
  std::vector<const std::byte*> experts_;              // (E)
  std::size_t bytes_ = 0;                              // of all experts
  std::shared_ptr<AlignedBuffer<std::byte>> weights_;  // null where they are somebody else's
  std::shared_ptr<const void> owner_;                  // of these
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI
