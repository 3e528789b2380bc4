// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What reads files of others, for fuzzing, and the corpora that it left.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <unistd.h>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/io/gguf.hpp>
#include <moe/io/gguf_loader.hpp>
#include <moe/io/packed.hpp>
#include <moe/io/quantized_loader.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/tensors.hpp>

namespace fuzz {

/// A file of this process with these bytes.
class File {
 public:
  explicit File(std::string_view bytes)
      : path_((std::filesystem::temp_directory_path() /
               ("moe_fuzz_" + std::to_string(getpid()) + ".safetensors"))
                  .string()) {
    // Anew, since what is mapped of an earlier one must not be cut short.
    std::filesystem::remove(path_);
    std::ofstream file(path_, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file) throw std::logic_error(path_ + " cannot be written");
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { std::filesystem::remove(path_); }
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

/// Reads the ends of what lies in the file.
inline void touch(std::span<const std::byte> data) {
  if (data.empty()) return;
  const volatile std::byte first = data.front();
  const volatile std::byte last = data.back();
  (void)first;
  (void)last;
}

inline void read_safetensors(const std::string& path) {
  const moe::io::SafetensorsFile file(path);
  for (const auto& [name, tensor] : file.tensors()) touch(tensor.data);
}

inline void read_gguf(const std::string& path) {
  const moe::io::GgufFile file(path);
  for (const auto& [name, tensor] : file.tensors()) {
    if (tensor.data.empty() || tensor.data.size() < tensor.row_bytes()) continue;
    std::vector<float> row(static_cast<std::size_t>(tensor.inner()));
    tensor.decode_row(0, row.data());
  }
  const moe::io::LayerConfig config = moe::io::layer_config(file);
  const moe::WeightFormat format = moe::format_of("int4-g32");
  for (const moe::Index layer : moe::io::moe_layers(file)) {
    try {
      moe::io::load_gguf_block(file, config, layer);
    } catch (const moe::FormatError&) {  // Other grids need a name.
    }
    moe::io::load_gguf_block(file, config, layer,
                             {.format = moe::ExpertFormat{format, moe::format_of("int8-g32")}});
  }
  try {
    moe::io::load_gguf_block(file, config, static_cast<moe::Index>(file.tensors().size()));
  } catch (const moe::FormatError&) {  // There are not as many layers.
  }
}

/// The header's checksum, which would refuse nearly all of it, is made right.
inline std::string with_checksum(std::string bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length)) return bytes;
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > bytes.size() - sizeof(length)) return bytes;
  const std::string text = bytes.substr(sizeof(length), length);
  nlohmann::json header = nlohmann::json::parse(text, nullptr, false);
  if (!header.is_object() || !header.contains("__metadata__") ||
      !header["__metadata__"].is_object())
    return bytes;
  try {
    header["__metadata__"]["moe.header"] = moe::io::detail::header_checksum(header);
    std::string changed = header.dump();
    changed.resize(std::max(changed.size(), (changed.size() + 8 + 63) / 64 * 64 - 8), ' ');
    length = changed.size();
    std::string begin(sizeof(length), '\0');
    std::memcpy(begin.data(), &length, sizeof(length));
    return begin + changed + bytes.substr(sizeof(length) + text.size());
  } catch (const nlohmann::json::exception&) {  // such as text that is no UTF-8
    return bytes;
  }
}

inline void read_packed(const std::string& path) {
  const moe::io::PackedFile file(path);
  for (const auto& [name, bank] : file.banks()) {
    if (bank.activation != "silu" || !bank.gated) continue;
    const auto experts = file.bank<moe::SwiGlu>(name);
    touch(experts.expert_bytes(0));
    experts.expert(experts.num_experts() - 1);
  }
  file.verify();
}

inline void read_checkpoint(const std::string& path) {
  const auto checkpoint = moe::io::Checkpoint::open(path);
  checkpoint.layer<float>(0);
  const moe::WeightFormat format = moe::format_of("int4-g32");
  moe::io::quantized_layer(checkpoint, 0, {.format = moe::ExpertFormat{format, format}});
  try {
    moe::io::quantized_layer(checkpoint, 0, {});
  } catch (const std::invalid_argument&) {  // Floats need a format.
  }
}

/// An index with one shard beside it, which has a tensor "a".
inline void read_index(const std::string& path) {
  const struct Folder {
    std::filesystem::path path;
    explicit Folder(const std::string& its_path) : path(its_path) {
      std::filesystem::create_directories(path);
    }
    ~Folder() { std::filesystem::remove_all(path); }
  } folder(path + ".shards");
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  const std::uint64_t length = header.size();
  std::string shard(sizeof(length), '\0');
  std::memcpy(shard.data(), &length, sizeof(length));
  std::ofstream(folder.path / "a.safetensors", std::ios::binary) << shard << header << "xy";
  const std::filesystem::path index = folder.path / "model.safetensors.index.json";
  std::filesystem::copy_file(path, index);
  const auto tensors = moe::io::Tensors::open(index.string());
  for (const std::string& name : tensors.names()) touch(tensors.tensor(name).data);
}

struct Parser {
  const char* name;
  void (*read)(const std::string& path);
  std::string (*prepare)(std::string bytes) = nullptr;
};

inline constexpr std::array<Parser, 5> parsers{{{"safetensors", read_safetensors},
                                                {"index", read_index},
                                                {"gguf", read_gguf},
                                                {"packed", read_packed, with_checksum},
                                                {"checkpoint", read_checkpoint}}};

inline const Parser& parser_of(std::string_view name) {
  for (const Parser& parser : parsers)
    if (parser.name == name) return parser;
  throw std::invalid_argument("there is no parser of that name");
}

/// Whether the bytes are read without a complaint. What is no error of a kind that callers are told
/// of gets out, and whatever sanitizers find.
inline bool is_read(const Parser& parser, const std::string& bytes) {
  const File file(parser.prepare == nullptr ? bytes : parser.prepare(bytes));
  try {
    parser.read(file.path());
    return true;
  } catch (const moe::FormatError&) {
  } catch (const std::invalid_argument&) {
  } catch (const std::system_error&) {
  }
  return false;
}

/// Files one after the other, each behind its length in four bytes.
inline std::vector<std::string> read_corpus(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(stream), {}};
  std::vector<std::string> files;
  for (std::size_t at = 0; at + 4 <= all.size();) {
    std::uint32_t size = 0;
    std::memcpy(&size, all.data() + at, 4);
    if (size > all.size() - at - 4) throw std::runtime_error(path + " is cut short");
    files.push_back(all.substr(at + 4, size));
    at += 4 + size;
  }
  return files;
}

inline void write_corpus(const std::string& path, const std::vector<std::string>& files) {
  std::ofstream stream(path, std::ios::binary);
  for (const std::string& file : files) {
    const auto size = static_cast<std::uint32_t>(file.size());
    stream.write(reinterpret_cast<const char*>(&size), 4);
    stream.write(file.data(), static_cast<std::streamsize>(file.size()));
  }
  if (!stream) throw std::runtime_error("cannot write " + path);
}

}  // namespace fuzz
