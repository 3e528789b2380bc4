// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Pictures of a training run.
#pragma once

#include <string>
#include <vector>

#include "language_model/training/log.hpp"

namespace language_model::training {

/// Throws  std::runtime_error if gnuplot cannot be run.
void check_gnuplot();

/// Draws the loss, and the share of the choices that each expert of each layer got, over the steps:
/// loss.svg, loss.png, load.svg and load.png in the folder.
///
/// Throws  std::runtime_error if there is no gnuplot, or it fails.
void plot(const std::vector<LogEntry>& entries, const std::string& folder);

/// Text within gnuplot's quotes.
std::string quoted(const std::string& text);

/// Runs a gnuplot script that defines the string `draw`, the plot command, and draws it to
/// <path>.svg and <path>.png.
///
/// Throws  as above.
void draw_picture(const std::string& script, const std::string& path);

}  // namespace language_model::training
