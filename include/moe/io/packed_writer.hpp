// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Writing packed files, expert by expert (POSIX). (optional: needs nlohmann_json)
#pragma once

#include <cerrno>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/checksum.hpp"
#include "moe/io/packed.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_ABI::io {

/// What a packed file is to say of a bank; checksums are the writer's.
template <class ActivationT>
PackedBank describe(const ExpertsConfig& config, const std::vector<ExpertFormat>& formats,
                    const ActivationT& activation) {
  PackedBank bank;
  bank.config = config;
  bank.gated = GatedActivation<ActivationT, float>;
  bank.activation = detail::activation_name<ActivationT>();
  bank.formats = formats;
  if constexpr (std::same_as<ActivationT, ClampedSwiGlu>) bank.clamp = activation;
  return bank;
}

template <class ActivationT>
PackedBank describe(const QuantizedExperts<ActivationT>& bank) {
  std::vector<ExpertFormat> formats;
  for (Index e = 0; e < bank.num_experts(); ++e) formats.push_back(bank.format(e));
  return describe(bank.config(), formats, bank.activation());
}

/// A tensor beside the banks, such as a router's weight.
struct PackedTensor {
  std::string name;
  std::string dtype;  // of safetensors: "F32"
  std::vector<Index> shape;
  std::string bytes;
};

/// Writes a packed file under another name, "<path>.part", which gets its own when all is there: a
/// file of that name is replaced then and not before, and stays as it was if anything fails. One
/// expert is in memory at a time.
class PackedWriter {
 public:
  /// Throws  std::system_error naming the path if the file cannot be made; std::invalid_argument if
  ///         a bank's sizes or formats make no sense, or a constant of its activation is not
  ///         finite.
  PackedWriter(std::string path, std::map<std::string, PackedBank> banks,
               const std::vector<PackedTensor>& tensors = {},
               const std::map<std::string, std::string>& metadata = {})
      : path_(std::move(path)), part_{path_ + ".part"}, banks_(std::move(banks)) {
    for (const auto& [key, value] : metadata) header_["__metadata__"][key] = value;
    header_["__metadata__"]["moe.version"] = packed_version;
    for (auto& [name, bank] : banks_) {
      const std::vector<ExpertLayout> layouts =
          moe::detail::coded_layouts("PackedWriter", bank.config, bank.gated, bank.formats);
      for (const double constant : {bank.clamp.alpha, bank.clamp.limit, bank.clamp.offset})
        moe::detail::check(std::isfinite(constant), "PackedWriter",
                           "a constant of the activation is not finite");
      const std::vector<std::string> names = PackedFile::tensor_names(name, bank);
      bank.checksums.assign(names.size(), std::string(16, '0'));
      for (Index e = 0; e < bank.config.num_experts; ++e) {
        const Index bytes = layouts[static_cast<std::size_t>(e)].bytes();
        place(names[static_cast<std::size_t>(e)], "U8", {bytes}, static_cast<std::size_t>(bytes));
      }
      if (!bank.config.biases) continue;
      for (const bool is_down : {false, true}) {
        const MatrixLayout& layout = is_down ? layouts[0].down : layouts[0].up;
        const Index cols = layout.panels * kernels::panel_width;
        place(names[names.size() - (is_down ? 1 : 2)], "F32", {bank.config.num_experts, cols},
              static_cast<std::size_t>(bank.config.num_experts * cols) * sizeof(float));
      }
    }
    nlohmann::json checksums = nlohmann::json::object();
    for (const PackedTensor& tensor : tensors) {  // Behind the banks, which keep their alignment.
      place(tensor.name, tensor.dtype.c_str(), tensor.shape, tensor.bytes.size());
      checksums[tensor.name] = checksum_of(std::as_bytes(std::span(tensor.bytes)));
    }
    header_["__metadata__"]["moe.tensors"] = checksums.dump();
    part_.descriptor = ::open(part_.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (part_.descriptor < 0) fail();
    data_offset_ = header_text().size();
    for (const PackedTensor& tensor : tensors)
      write(places_.at(tensor.name), std::as_bytes(std::span(tensor.bytes)));
  }

  /// Throws  std::system_error if the disk is full; ShapeError if there are not as many bytes as
  ///         the expert takes; std::out_of_range if there is no such bank or expert.
  void write_expert(const std::string& bank, Index e, std::span<const std::byte> bytes) {
    write_tensor(bank, static_cast<std::size_t>(e), bytes);
  }

  /// Shapes  as QuantizedExperts::up_bias and down_bias.
  void write_biases(const std::string& bank, const Matrix<float>& up, const Matrix<float>& down) {
    const auto experts = static_cast<std::size_t>(banks_.at(bank).config.num_experts);
    const auto bytes = [](const Matrix<float>& m) {
      return std::as_bytes(std::span(m.data(), static_cast<std::size_t>(m.size())));
    };
    write_tensor(bank, experts, bytes(up));
    write_tensor(bank, experts + 1, bytes(down));
  }

  template <class ActivationT>
  void write_bank(const std::string& name, const QuantizedExperts<ActivationT>& bank) {
    for (Index e = 0; e < bank.num_experts(); ++e) write_expert(name, e, bank.expert_bytes(e));
    if (bank.has_biases()) write_biases(name, bank.up_bias(), bank.down_bias());
  }

  /// Completes the file and gives it its name.
  ///
  /// Throws  std::logic_error if an expert or bias was not written; std::system_error if the disk
  ///         is full.
  void finish() {
    for (const auto& [name, bank] : banks_)
      for (const std::string& sum : bank.checksums)
        if (sum == std::string(16, '0'))
          throw std::logic_error(moe::detail::text_of("PackedWriter::finish: a part of the bank ",
                                                      name, " was not written"));
    const std::string header = header_text();
    write_at(0, std::as_bytes(std::span(header)));
    // Also where the last tensor is empty, the file ends where its data do.
    if (::ftruncate(part_.descriptor, static_cast<off_t>(data_offset_ + size_)) != 0 ||
        ::fsync(part_.descriptor) != 0)
      fail();
    const int descriptor = std::exchange(part_.descriptor, -1);
    const bool is_closed = ::close(descriptor) == 0;
    if (!is_closed || std::rename(part_.path.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      ::unlink(part_.path.c_str());
      throw std::system_error(error, std::generic_category(), path_);
    }
  }

 private:
  struct Place {
    std::size_t begin;
    std::size_t size;
  };

  /// The file under its other name, which goes with the writer unless it is complete.
  struct Part {
    std::string path;
    int descriptor = -1;

    explicit Part(std::string its_path) : path(std::move(its_path)) {}
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;
    ~Part() {
      if (descriptor < 0) return;
      ::close(descriptor);
      ::unlink(path.c_str());
    }
  };

  [[noreturn]] void fail() const {
    throw std::system_error(errno, std::generic_category(), part_.path);
  }

  void place(const std::string& name, const char* dtype, const std::vector<Index>& shape,
             std::size_t bytes) {
    moe::detail::check(!places_.contains(name), "PackedWriter", "two tensors have the same name");
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {size_, size_ + bytes}}};
    places_.emplace(name, Place{size_, bytes});
    size_ += bytes;
  }

  /// Header length and header. Its size does not depend on the checksums.
  std::string header_text() {
    nlohmann::json banks = nlohmann::json::object();
    for (const auto& [name, bank] : banks_) banks[name] = detail::to_json(bank);
    header_["__metadata__"]["moe.banks"] = banks.dump();
    header_["__metadata__"]["moe.header"] = detail::header_checksum(header_);
    std::string header = header_.dump();
    header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');
    const std::uint64_t length = header.size();
    std::string text(sizeof(length), '\0');
    std::memcpy(text.data(), &length, sizeof(length));
    return text + header;
  }

  void write_tensor(const std::string& bank, std::size_t i, std::span<const std::byte> bytes) {
    PackedBank& its = banks_.at(bank);
    write(places_.at(PackedFile::tensor_names(bank, its).at(i)), bytes);
    its.checksums.at(i) = checksum_of(bytes);
  }

  void write(const Place& place, std::span<const std::byte> bytes) {
    moe::detail::check_size("PackedWriter", "bytes", static_cast<std::ptrdiff_t>(place.size),
                            static_cast<std::ptrdiff_t>(bytes.size()));
    write_at(data_offset_ + place.begin, bytes);
  }

  void write_at(std::size_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written =
          ::pwrite(part_.descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail();
      offset += static_cast<std::size_t>(written);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  std::string path_;
  Part part_;
  std::map<std::string, PackedBank> banks_;
  nlohmann::json header_ = nlohmann::json::object();
  std::map<std::string, Place> places_;
  std::size_t size_ = 0;
  std::size_t data_offset_ = 0;
};

/// Writes one bank to a packed file of its own, under the name "experts".
///
/// Throws  as PackedWriter.
template <class ActivationT>
void write_packed(const std::string& path, const QuantizedExperts<ActivationT>& bank) {
  PackedWriter writer(path, {{"experts", describe(bank)}});
  writer.write_bank("experts", bank);
  writer.finish();
}

}  // namespace moe::inline MOE_ABI::io
