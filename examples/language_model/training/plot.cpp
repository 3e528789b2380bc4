// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See plot.hpp.
#include "language_model/training/plot.hpp"

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <numeric>
#include <sstream>
#include <stdexcept>

namespace language_model::training {
namespace {

void run_gnuplot(const std::string& script) {
  // Where gnuplot is missing, the shell is gone before all of the script is written.
  struct IgnorePipe {
    void (*before)(int) = std::signal(SIGPIPE, SIG_IGN);
    ~IgnorePipe() { std::signal(SIGPIPE, before); }
  };
  const IgnorePipe ignored;
  std::FILE* const pipe = popen("gnuplot", "w");
  if (pipe == nullptr) throw std::runtime_error("gnuplot cannot be started");
  const bool written = std::fwrite(script.data(), 1, script.size(), pipe) == script.size();
  const int status = pclose(pipe);
  if (!written || status != 0)
    throw std::runtime_error("gnuplot failed; Debian has it in the package gnuplot-nox");
}

/// Entries in groups of about one pixel each, so that a long run stays legible.
std::size_t group_size(std::size_t entries) {
  return std::max<std::size_t>(1, entries / 400);
}

std::string loss_script(const std::vector<LogEntry>& entries) {
  std::ostringstream script;
  script << "$train << EOD\n";
  const std::size_t group = group_size(entries.size());
  for (std::size_t begin = 0; begin < entries.size(); begin += group) {
    const std::size_t end = std::min(begin + group, entries.size());
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += entries[i].loss;
    script << entries[end - 1].step << ' ' << sum / static_cast<double>(end - begin) << '\n';
  }
  script << "EOD\n";
  std::size_t evaluations = 0;
  script << "$evaluation << EOD\n";
  for (const LogEntry& entry : entries) {
    if (entry.evaluation < 0) continue;
    ++evaluations;
    script << entry.step << ' ' << entry.evaluation << '\n';
  }
  script << "EOD\n"
         << "set xlabel 'step'\nset ylabel 'nats per byte'\nset grid lc rgb '#dddddd'\n"
         << "set key top right\n"
         << "draw = \"plot $train with lines lw 1.5 lc rgb '#4477aa' title 'training'"
         << (evaluations > 0
                 ? ", $evaluation with linespoints lw 1.5 pt 7 ps 0.6 lc rgb '#ee6677' title "
                   "'evaluation'"
                 : "")
         << "\"\n";
  return script.str();
}

/// One band for each layer, one line in it for each expert; darker is more.
std::string load_script(const std::vector<LogEntry>& entries) {
  const std::vector<std::vector<Index>>& first = entries.front().loads;
  const std::size_t group = group_size(entries.size());
  std::ostringstream script;
  script << "$load << EOD\n";
  double largest = 0;
  for (std::size_t begin = 0; begin < entries.size(); begin += group) {
    const std::size_t end = std::min(begin + group, entries.size());
    std::size_t row = 0;
    for (std::size_t layer = 0; layer < first.size(); ++layer) {
      std::vector<double> load(first[layer].size());
      for (std::size_t i = begin; i < end; ++i)
        for (std::size_t e = 0; e < load.size(); ++e)
          load[e] += static_cast<double>(entries[i].loads[layer][e]);
      const double total = std::accumulate(load.begin(), load.end(), 0.0);
      for (std::size_t e = 0; e < load.size(); ++e, ++row) {
        const double share = total > 0 ? load[e] / total * static_cast<double>(load.size()) : 0;
        largest = std::max(largest, share);
        script << entries[end - 1].step << ' ' << row << ' ' << share << '\n';
      }
    }
    script << '\n';
  }
  script << "EOD\nset xlabel 'step'\nset ylabel 'layer, a row for each expert'\n"
         << "set cblabel 'load over the even share'\nset cbrange [0:" << std::max(2.0, largest)
         << "]\nset palette defined (0 '#ffffff', 1 '#88ccee', 2 '#332288')\n"
         << "set view map\nset xtics nomirror\nset ytics nomirror (";
  std::ostringstream borders;
  std::size_t row = 0;
  for (std::size_t layer = 0; layer < first.size(); ++layer) {
    script << (layer > 0 ? ", " : "") << '\'' << layer << "' "
           << static_cast<double>(row) + (static_cast<double>(first[layer].size()) - 1) / 2;
    row += first[layer].size();
    if (layer + 1 == first.size()) continue;
    const std::string border = std::to_string(static_cast<double>(row) - 0.5);
    borders << "set arrow from graph 0, first " << border << " to graph 1, first " << border
            << " nohead front lc rgb '#888888'\n";
  }
  script << ")\n"
         << borders.str() << "set xrange [" << entries.front().step << ":" << entries.back().step
         << "]\nset yrange [-0.5:" << static_cast<double>(row) - 0.5 << "] reverse\n"
         << "draw = \"plot $load using 1:2:3 with image notitle\"\n";
  return script.str();
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

void draw_picture(const std::string& script, const std::string& path) {
  run_gnuplot(script +
              "set terminal svg size 800,450 font 'sans,12' background rgb 'white'\nset output " +
              quoted(path + ".svg") + "\neval draw\n" +
              "set terminal pngcairo size 1200,675 font 'sans,13'\nset output " +
              quoted(path + ".png") + "\neval draw\nset output\n");
}

void check_gnuplot() {
  run_gnuplot("\n");
}

void plot(const std::vector<LogEntry>& entries, const std::string& folder) {
  if (entries.empty()) return;
  draw_picture(loss_script(entries), folder + "/loss");
  if (!entries.front().loads.empty()) draw_picture(load_script(entries), folder + "/load");
}

}  // namespace language_model::training
