// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// How a model is trained.
#pragma once

#include <cstdint>
#include <string>

#include <moe/core/types.hpp>

namespace language_model::training {

using moe::Index;

/// What keeps the experts' loads even.
enum class Balance {
  none,
  aux,    ///< the load-balancing loss of the Switch Transformer, K at balance
  noise,  ///< importance and load losses, with normal noise of deviation 1 / E on the logits
  bias,   ///< a selection bias that moves against the load, without a loss
};

struct TrainOptions {
  Index steps = 1000;
  Index batch = 24;     ///< windows of a step
  Index context = 128;  ///< bytes of a window
  double learning_rate = 2e-3;
  Index warmup_steps = 100;
  double final_rate = 0.05;  ///< share of the learning rate at the end
  double weight_decay = 0.1;
  double clip = 1;  ///< largest norm of the gradient
  Balance balance = Balance::aux;
  double balance_weight = 0.01;  ///< coefficient of the balance's losses
  double bias_rate = 1e-3;
  double z_loss = 0;          ///< coefficient
  double capacity = 0;        ///< rows of an expert over the even share; 0 for no limit
  double dropout = 0;         ///< of what both sub-blocks add
  double expert_dropout = 0;  ///< of hidden values inside experts
  std::uint64_t seed = 1;
};

}  // namespace language_model::training
