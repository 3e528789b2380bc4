// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// corpus unpack FILE FOLDER   the files of a corpus, into a folder
// corpus pack FOLDER FILE     and back, in the order of their sizes, but for those of more than
//                             9000 bytes, which are many
// corpus seeds PARSER FOLDER  small files that the parser reads, to begin with
#include <algorithm>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/parsers.hpp"
#include "fuzz/seeds.hpp"

namespace {

void write_files(const std::vector<std::string>& files, const std::filesystem::path& folder,
                 const std::string& prefix) {
  std::filesystem::create_directories(folder);
  for (std::size_t i = 0; i < files.size(); ++i)
    std::ofstream(folder / (prefix + std::to_string(i)), std::ios::binary) << files[i];
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) throw std::invalid_argument("corpus unpack|pack|seeds FROM TO");
  const std::string& from = arguments[1];
  const std::string& to = arguments[2];
  if (arguments[0] == "unpack") {
    write_files(fuzz::read_corpus(from), to, "kept");
  } else if (arguments[0] == "pack") {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(from)) {
      if (entry.file_size() > 9000) continue;
      std::ifstream stream(entry.path(), std::ios::binary);
      files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    std::sort(files.begin(), files.end(), [](const std::string& a, const std::string& b) {
      return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    fuzz::write_corpus(to, files);
  } else if (arguments[0] == "seeds") {
    write_files(fuzz::seeds_of(from), to, "seed");
    write_files(fuzz::other_seeds_of(from), to, "other");
  } else {
    throw std::invalid_argument("corpus unpack|pack|seeds FROM TO");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "corpus: " << error.what() << '\n';
    return 1;
  }
}
