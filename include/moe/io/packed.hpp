// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Packed files: banks as they lie in memory, in a safetensors file that is mapped back without
// copying. (optional: needs nlohmann_json)
//
// A packed file is a safetensors file whose header is filled up with spaces to a multiple of 64
// bytes. Its metadata has
//
//     moe.version    "2": what follows, and MatrixLayout
//     moe.banks      a JSON object: of each bank its sizes, activation, formats, and the checksums
//                    of its experts and biases
//     moe.tensors    a JSON object: the checksums of the other tensors
//     moe.header     the checksum of the header without this entry
//
// and its tensors are, for each bank, "<bank>.<e>" with the bytes of expert e, "<bank>.up_bias" and
// "<bank>.down_bias"; other tensors may stand beside them. What is written is complete when it
// appears under its name. A file that is cut short while it is mapped cannot be survived: replace
// files by rename.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/checksum.hpp"
#include "moe/io/json.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_ABI::io {

inline constexpr const char* packed_version = "2";

/// What a packed file says of a bank.
struct PackedBank {
  ExpertsConfig config{};
  bool gated = true;
  std::string activation;                // "silu", "gelu", "gelu_tanh", "relu" or "clamped"
  ClampedSwiGlu clamp{};                 // of "clamped"
  std::vector<ExpertFormat> formats{};   // (E)
  std::vector<std::string> checksums{};  // (E) of experts, then of biases, where there are any
};

namespace detail {

/// The name of an activation in a packed file.
template <class ActivationT>
std::string activation_name() {
  constexpr const char* names[] = {"relu", "silu", "gelu", "gelu_tanh", "clamped"};
  static_assert(moe::detail::KernelOf<ActivationT>::exists,
                "packed files know the activations that have kernels");
  return names[static_cast<std::size_t>(moe::detail::KernelOf<ActivationT>::kind)];
}

/// The header without its own checksum, as it is summed up.
inline std::string header_checksum(nlohmann::json header) {
  header["__metadata__"].erase("moe.header");
  const std::string text = header.dump();
  return checksum_of(std::as_bytes(std::span(text)));
}

inline nlohmann::json to_json(const PackedBank& bank) {
  nlohmann::json json{{"num_experts", bank.config.num_experts},
                      {"d_model", bank.config.d_model},
                      {"d_ff", bank.config.d_ff},
                      {"biases", bank.config.biases},
                      {"down_bias_is_weighted", bank.config.down_bias == DownBias::weighted},
                      {"gated", bank.gated},
                      {"activation", bank.activation},
                      {"checksums", bank.checksums}};
  if (bank.activation == "clamped")
    json["clamp"] = {{"alpha", bank.clamp.alpha},
                     {"limit", bank.clamp.limit},
                     {"offset", bank.clamp.offset},
                     {"clamps_gate_below", bank.clamp.clamps_gate_below}};
  for (const ExpertFormat& format : bank.formats)
    json["formats"].push_back({format_name(format.up), format_name(format.down)});
  return json;
}

}  // namespace detail

/// A packed file, mapped: a bank is ready at once, its pages come in when they are used, and
/// processes share them. Copies share the mapping.
class PackedFile {
 public:
  /// Checks the header, not the tensors.
  ///
  /// Throws  std::system_error if the file cannot be read; FormatError if it is no packed file of
  ///         this version, its header is not as it was written, or a tensor has another size than
  ///         its bank says.
  explicit PackedFile(const std::string& path) : file_(path) {
    const auto& metadata = file_.metadata();
    const auto entry = [&](const char* name) -> const std::string& {
      const auto found = metadata.find(name);
      if (found == metadata.end())
        fail("", moe::detail::text_of("is no packed file: there is no metadata entry ", name));
      return found->second;
    };
    const std::string& version = entry("moe.version");
    if (version != packed_version)
      fail("", moe::detail::text_of("the file has version ", version, ", this program reads ",
                                    packed_version));
    if (detail::header_checksum(detail::parse_json(file_.header_text(), path, 8)) !=
        entry("moe.header"))
      fail("", "the header is not as it was written");
    const nlohmann::json banks = detail::parse_json(entry("moe.banks"), path, 8);
    for (const auto& [name, json] : banks.items()) {
      try {
        banks_.emplace(name, read_bank(json));
      } catch (const nlohmann::json::exception&) {
        fail(name, "moe.banks lacks a field or has one of another type");
      } catch (const std::invalid_argument& error) {
        fail(name, error.what());
      }
    }
    for (const auto& [name, bank] : banks_) check_tensors(name, bank);
    const nlohmann::json others = detail::parse_json(entry("moe.tensors"), path, 8);
    try {
      others_ = others.get<std::map<std::string, std::string>>();
    } catch (const nlohmann::json::exception&) {
      fail("", "moe.tensors is no list of checksums");
    }
    for (const auto& [name, checksum] : others_) tensor(name);
  }

  const std::string& path() const noexcept { return file_.path(); }
  const std::map<std::string, PackedBank, std::less<>>& banks() const noexcept { return banks_; }
  /// All tensors and metadata.
  const SafetensorsFile& file() const noexcept { return file_; }

  /// A bank of weights in the file. The activation's constants, if it has any, are the file's.
  ///
  /// Throws  FormatError if there is no such bank, or it has another activation.
  template <Activation<float> ActivationT>
  QuantizedExperts<ActivationT> bank(std::string_view name) const {
    const PackedBank& bank = find(name);
    const std::string activation = detail::activation_name<ActivationT>();
    if (bank.activation != activation || bank.gated != GatedActivation<ActivationT, float>)
      fail(std::string(name), moe::detail::text_of("the bank has the activation ", bank.activation,
                                                   bank.gated ? ", gated" : ", plain"));
    ActivationT its_activation{};
    if constexpr (std::same_as<ActivationT, ClampedSwiGlu>) its_activation = bank.clamp;
    std::vector<const std::byte*> experts;
    for (Index e = 0; e < bank.config.num_experts; ++e)
      experts.push_back(tensor(expert_name(name, e)).data.data());
    QuantizedExperts<ActivationT> result(bank.config, bank.formats, std::move(experts),
                                         std::make_shared<SafetensorsFile>(file_), its_activation);
    if (bank.config.biases) {
      copy_bias(moe::detail::text_of(name, ".up_bias"), result.up_bias());
      copy_bias(moe::detail::text_of(name, ".down_bias"), result.down_bias());
    }
    return result;
  }

  /// Reads everything, and compares it with what was written.
  ///
  /// Throws  FormatError naming the first tensor that is not as it was written.
  void verify() const {
    for (const auto& [name, bank] : banks_) {
      std::size_t i = 0;
      for (const std::string& of_bank : tensor_names(name, bank))
        verify(of_bank, bank.checksums[i++]);
    }
    for (const auto& [name, checksum] : others_) verify(name, checksum);
  }

  /// The tensors of a bank, in the order of their checksums.
  static std::vector<std::string> tensor_names(std::string_view name, const PackedBank& bank) {
    std::vector<std::string> names;
    for (Index e = 0; e < bank.config.num_experts; ++e) names.push_back(expert_name(name, e));
    if (bank.config.biases) {
      names.push_back(moe::detail::text_of(name, ".up_bias"));
      names.push_back(moe::detail::text_of(name, ".down_bias"));
    }
    return names;
  }

 private:
  static std::string expert_name(std::string_view bank, Index e) {
    return moe::detail::text_of(bank, ".", e);
  }

  [[noreturn]] MOE_COLD void fail(const std::string& tensor, const std::string& problem) const {
    throw FormatError(path(), tensor, 0, problem);
  }

  void verify(const std::string& name, const std::string& checksum) const {
    const TensorView& found = tensor(name);
    if (checksum_of(found.data) != checksum)
      throw FormatError(path(), name, found.offset, "is not as it was written");
  }

  const PackedBank& find(std::string_view name) const {
    const auto found = banks_.find(name);
    if (found == banks_.end()) fail(std::string(name), "there is no such bank");
    return found->second;
  }

  const TensorView& tensor(const std::string& name) const {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) fail(name, "is missing");
    return found->second;
  }

  static PackedBank read_bank(const nlohmann::json& json) {
    PackedBank bank;
    bank.config = {.num_experts = json.at("num_experts").get<Index>(),
                   .d_model = json.at("d_model").get<Index>(),
                   .d_ff = json.at("d_ff").get<Index>(),
                   .biases = json.at("biases").get<bool>(),
                   .down_bias = json.at("down_bias_is_weighted").get<bool>()
                                    ? DownBias::weighted
                                    : DownBias::unweighted};
    bank.gated = json.at("gated").get<bool>();
    bank.activation = json.at("activation").get<std::string>();
    if (bank.activation == "clamped") {
      const nlohmann::json& clamp = json.at("clamp");
      bank.clamp = {.alpha = clamp.at("alpha").get<double>(),
                    .limit = clamp.at("limit").get<double>(),
                    .offset = clamp.at("offset").get<double>(),
                    .clamps_gate_below = clamp.at("clamps_gate_below").get<bool>()};
    }
    for (const nlohmann::json& format : json.at("formats"))
      bank.formats.push_back(
          {format_of(format.at(0).get<std::string>()), format_of(format.at(1).get<std::string>())});
    bank.checksums = json.at("checksums").get<std::vector<std::string>>();
    return bank;
  }

  void check_tensors(const std::string& name, const PackedBank& bank) const {
    const std::vector<std::string> names = [&] {
      // Sizes that cannot be are found before they are counted up to.
      const auto most = static_cast<Index>(file_.tensors().size());
      if (bank.config.num_experts <= 0 || bank.config.num_experts > most)
        fail(name, "the bank has more experts than the file has tensors");
      return tensor_names(name, bank);
    }();
    if (bank.checksums.size() != names.size() ||
        bank.formats.size() != static_cast<std::size_t>(bank.config.num_experts))
      fail(name, "moe.banks does not name a format and a checksum for each expert");
    std::vector<ExpertLayout> layouts;
    try {
      layouts = moe::detail::coded_layouts("PackedFile", bank.config, bank.gated, bank.formats);
    } catch (const std::invalid_argument& error) {
      fail(name, error.what());
    }
    for (Index e = 0; e < bank.config.num_experts; ++e) {
      const std::string& expert = names[static_cast<std::size_t>(e)];
      const TensorView& found = tensor(expert);
      const Index bytes = layouts[static_cast<std::size_t>(e)].bytes();
      if (static_cast<Index>(found.data.size()) != bytes)
        throw FormatError(
            path(), expert, found.offset,
            moe::detail::text_of("has ", found.data.size(), " bytes, expected ", bytes));
      if (reinterpret_cast<std::uintptr_t>(found.data.data()) % 64 != 0)
        throw FormatError(path(), expert, found.offset, "does not begin at a multiple of 64 bytes");
    }
    if (!bank.config.biases) return;
    const Index width = kernels::panel_width;
    const Index rows = bank.config.num_experts;
    check_bias(names[names.size() - 2], rows, layouts[0].up.panels * width);
    check_bias(names[names.size() - 1], rows, layouts[0].down.panels * width);
  }

  void check_bias(const std::string& name, Index rows, Index cols) const {
    const TensorView& found = tensor(name);
    if (found.dtype != Dtype::f32 || found.shape != std::vector<Index>{rows, cols})
      throw FormatError(path(), name, found.offset, "has another type or shape");
  }

  void copy_bias(const std::string& name, Matrix<float>& to) const {
    const TensorView& found = tensor(name);
    std::copy_n(found.data.data(), found.data.size(), reinterpret_cast<std::byte*>(to.data()));
  }

  SafetensorsFile file_;
  std::map<std::string, PackedBank, std::less<>> banks_;
  std::map<std::string, std::string> others_;  // checksums of tensors beside the banks
};

}  // namespace moe::inline MOE_ABI::io
