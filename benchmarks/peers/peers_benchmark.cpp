// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// peer:<library>/<shape>/<weights>/T:<tokens>  the block of forward/<shape>/<weights>/T:<tokens> on
//                                              another library's products, the fastest of experts
//                                              one after the other with all threads each and side
//                                              by side with one, gate and up as one product and as
//                                              two; or in the library's own block, where it has
//                                              one; the counter times_ours is its time over our
//                                              layer's, both in turn
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <omp.h>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "peers/native.hpp"
#include "peers/peer.hpp"
#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

/// One expert's products.
struct PeerExpert {
  std::unique_ptr<PeerProduct> gate;     // gated only
  std::unique_ptr<PeerProduct> gate_up;  // gated only: both, one above the other
  std::unique_ptr<PeerProduct> up;
  std::unique_ptr<PeerProduct> down;
};

/// How a block is built from products.
struct Form {
  bool side_by_side = false;  // experts, with a thread each
  bool fuses_gate = false;    // gate and up as one product
};

/// Memory of one expert's rows.
struct PeerRows {
  Matrix<float> x;
  Matrix<float> gate;
  Matrix<float> gate_up;
  Matrix<float> hidden;
};

/// Random weights, made expert by expert where the bank has others than floats.
template <class Bank>
Bank random_bank(const moe::ExpertsConfig& config, std::mt19937_64& rng) {
  if constexpr (requires { Bank::random(config, rng); }) {
    return Bank::random(config, rng);
  } else {
    Bank bank(config, moe::ExpertFormat{moe::format_of("int8"), moe::format_of("int8")});
    moe::ExpertsConfig of_one = config;
    of_one.num_experts = 1;
    for (Index e = 0; e < config.num_experts; ++e) {
      const moe::ExpertMatrices<float> matrices =
          moe::SwiGluExperts<float>::random(of_one, rng).expert(0);
      bank.set_expert(e, matrices.weights(), {.search = moe::ScaleSearch::nearest});
    }
    return bank;
  }
}

/// The layer on a peer, with the weights of the bank of our own that the benchmarks make. Gate and
/// up are there twice, since libraries pack both as one matrix in another layout than each alone.
template <class Bank>
class PeerLayer {
 public:
  PeerLayer(const Peer& peer, const Shape& shape)
      : peer_(&peer), shape_(shape), ours_(make_ours(shape)) {
    const Bank& bank = ours_.experts();
    peer.set_threads(omp_get_max_threads());
    block_ = peer.block(shape, [&](Index e) { return bank.expert(e); });
    for (Index e = 0; e < shape.num_experts && !block_; ++e) {
      const moe::ExpertMatrices<float> m = bank.expert(e);
      PeerExpert expert;
      if (is_gated()) {
        expert.gate = peer.prepare(m.gate);
        Matrix<float> both(2 * shape.d_ff, shape.d_model);
        both << m.gate, m.up;
        expert.gate_up = peer.prepare(both);
      }
      expert.up = peer.prepare(m.up);
      expert.down = peer.prepare(m.down);
      experts_.push_back(std::move(expert));
    }
    check(bank);
  }

  bool has_block() const { return block_ != nullptr; }

  /// Those that it can be built in.
  std::vector<Form> forms() const {
    if (block_) return {Form{}};
    std::vector<Form> forms;
    for (const bool fuses_gate : {false, true})
      for (const bool side_by_side : {false, true})
        if (!fuses_gate || is_gated()) forms.push_back({side_by_side, fuses_gate});
    return forms;
  }

  /// Our own layer with the same weights.
  const moe::SparseMoe<moe::TopKRouter<float>, Bank>& ours() const { return ours_; }

  void forward(const Matrix<float>& x, const moe::Routing<float>& routing, Matrix<float>& y,
               Form form) {
    if (block_) return block_->forward(x, routing, y);
    const int threads = omp_get_max_threads();
    moe::make_plan(routing, {}, plan_);
    rows_.resize(plan_.num_rows(), shape_.d_model);
    memory_.resize(static_cast<std::size_t>(threads));
    peer_->set_threads(form.side_by_side ? 1 : threads);
    if (form.side_by_side) {
      omp_set_num_threads(threads);
#pragma omp parallel for schedule(dynamic)
      for (Index e = 0; e < shape_.num_experts; ++e)
        run_expert(x, e, form.fuses_gate, memory_[static_cast<std::size_t>(omp_get_thread_num())]);
    } else {
      for (Index e = 0; e < shape_.num_experts; ++e) run_expert(x, e, form.fuses_gate, memory_[0]);
    }
    omp_set_num_threads(threads);
    moe::combine<float>(rows_, plan_, routing.weights, y);
  }

 private:
  using Layer = moe::SparseMoe<moe::TopKRouter<float>, Bank>;

  static Layer make_ours(const Shape& shape) {
    std::mt19937_64 rng(1);
    auto router = shape.router(rng);
    return {std::move(router), random_bank<Bank>(shape.experts(), rng)};
  }

  bool is_gated() const {
    return shape_.gating == Gating::gated;
  }

  /// In the region of experts side by side, its loops have one thread.
  void run_expert(const Matrix<float>& x, Index e, bool fuses_gate, PeerRows& memory) {
    const Index count = plan_.rows_of(e);
    if (count == 0) return;
    const Index first = plan_.first_row(e);
    const PeerExpert& expert = experts_[static_cast<std::size_t>(e)];
    // Memory is kept between calls: these only grow the first times.
    if (memory.x.rows() < count) {
      memory.x.resize(count, shape_.d_model);
      memory.hidden.resize(count, shape_.d_ff);
      if (is_gated()) {
        memory.gate.resize(count, shape_.d_ff);
        memory.gate_up.resize(count, 2 * shape_.d_ff);
      }
    }
#pragma omp parallel for
    for (Index r = 0; r < count; ++r)
      memory.x.row(r) = x.row(plan_.rows[static_cast<std::size_t>(first + r)].token);
    float* const hidden = memory.hidden.data();
    if (fuses_gate) {
      expert.gate_up->run(memory.x.data(), count, memory.gate_up.data());
#pragma omp parallel for
      for (Index r = 0; r < count; ++r) {
        const float* const both = memory.gate_up.row(r).data();
        native::swiglu(both, both + shape_.d_ff, memory.hidden.row(r).data(), shape_.d_ff);
      }
    } else {
      expert.up->run(memory.x.data(), count, hidden);
      if (is_gated()) expert.gate->run(memory.x.data(), count, memory.gate.data());
      activate(memory.gate.data(), hidden, count * shape_.d_ff);
    }
    expert.down->run(hidden, count, rows_.row(first).data());
  }

  void activate(const float* gate, float* hidden, Index size) const {
    const Index parts = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
#pragma omp parallel for
    for (Index part = 0; part < parts; ++part) {
      const Index begin = size * part / parts;
      const Index count = size * (part + 1) / parts - begin;
      if (is_gated()) {
        native::swiglu(gate + begin, hidden + begin, hidden + begin, count);
      } else {
        native::relu(hidden + begin, count);
      }
    }
  }

  /// Throws std::runtime_error if the peer computes something else.
  void check(const Bank& bank) {
    // One row, few and many, since libraries take other paths for them.
    for (const Index tokens : {Index{1}, Index{5}, Index{256}}) check(bank, tokens);
  }

  void check(const Bank& bank, Index tokens) {
    const Matrix<float> x = Matrix<float>::Random(tokens, shape_.d_model);
    const moe::Routing<float> routing = make_routing(shape_, tokens, Skew::uniform, 3);
    // Plain loops take long for more tokens than one, and tell nothing of codes, since both sides
    // round activations to eight bits: there our bank is the measure, which tests compare with
    // them.
    const bool by_loops = tokens == 1 && !peer_->is_int8();
    const Matrix<float> expected = by_loops ? plainly(bank, x, routing) : by_bank(bank, x, routing);
    for (const Form form : forms()) {
      Matrix<float> y = Matrix<float>::Constant(tokens, shape_.d_model, std::nanf(""));
      forward(x, routing, y, form);
      // Both round activations to eight bits, at other places.
      const float most = peer_->is_int8() ? 0.02F : 1e-4F;
      if (!((y - expected).norm() <= most * expected.norm()))
        throw std::runtime_error(peer_->name() + " gives another result");
    }
  }

  Matrix<float> by_bank(const Bank& bank, const Matrix<float>& x,
                        const moe::Routing<float>& routing) const {
    moe::DispatchPlan plan;
    moe::make_plan(routing, {}, plan);
    Matrix<float> rows(plan.num_rows(), shape_.d_model);
    moe::Scratch scratch;
    bank.forward({x, plan}, rows, scratch);
    Matrix<float> y(x.rows(), shape_.d_model);
    moe::combine<float>(rows, plan, routing.weights, y);
    return y;
  }

  /// One token through its experts in double precision.
  Matrix<float> plainly(const Bank& bank, const Matrix<float>& x,
                        const moe::Routing<float>& routing) const {
    const auto times = [](const Matrix<float>& m, const std::vector<double>& v) {
      std::vector<double> result(static_cast<std::size_t>(m.rows()));
#pragma omp parallel for
      for (Index o = 0; o < m.rows(); ++o)
        for (Index i = 0; i < m.cols(); ++i)
          result[static_cast<std::size_t>(o)] +=
              static_cast<double>(m(o, i)) * v[static_cast<std::size_t>(i)];
      return result;
    };
    const std::vector<double> token(x.data(), x.data() + x.cols());
    Matrix<float> y = Matrix<float>::Zero(1, shape_.d_model);
    for (Index k = 0; k < shape_.top_k; ++k) {
      const moe::ExpertMatrices<float> expert = bank.expert(routing.experts(0, k));
      std::vector<double> hidden = times(expert.up, token);
      if (shape_.gating == Gating::gated) {
        const std::vector<double> gate = times(expert.gate, token);
        for (std::size_t f = 0; f < hidden.size(); ++f)
          hidden[f] *= gate[f] / (1 + std::exp(-gate[f]));
      } else {
        for (double& value : hidden) value = std::max(value, 0.0);
      }
      const std::vector<double> result = times(expert.down, hidden);
      for (Index d = 0; d < shape_.d_model; ++d)
        y(0, d) += routing.weights(0, k) * static_cast<float>(result[static_cast<std::size_t>(d)]);
    }
    return y;
  }

  const Peer* peer_;
  Shape shape_;
  Layer ours_;
  std::unique_ptr<PeerBlock> block_;  // in place of the experts
  std::vector<PeerExpert> experts_;
  std::vector<PeerRows> memory_;
  moe::DispatchPlan plan_;
  Matrix<float> rows_;
};

double seconds_of(const std::function<void()>& run) {
  const Clock::time_point start = Clock::now();
  run();
  return seconds_since(start);
}

/// What is found out once about a benchmark, which Google Benchmark calls more than once.
struct Preparation {
  std::uint64_t routings = 0;
  Form form = {};
};

/// The form of least median time of run(turn, call, form), in turn: five turns, then as many as two
/// seconds hold, 200 at most. Each turn begins with another form, and each call has a number of its
/// own, for another copy of the weights where there are several.
template <class Run>
Form fastest(const std::vector<Form>& forms, const Run& run) {
  if (forms.size() == 1) return forms[0];
  std::vector<std::vector<double>> times(forms.size());
  const Clock::time_point start = Clock::now();
  for (std::size_t turn = 0; turn < 5 || (turn < 200 && seconds_since(start) < 2); ++turn) {
    for (std::size_t i = 0; i < forms.size(); ++i) {
      const std::size_t form = (turn + i) % forms.size();
      times[form].push_back(run(turn, turn * forms.size() + i, forms[form]));
    }
  }
  std::size_t best = 0;
  for (std::size_t i = 1; i < forms.size(); ++i)
    if (median(times[i]) < median(times[best])) best = i;
  return forms[best];
}

template <class Bank>
void run_peer(benchmark::State& state, const std::string& name, const Peer& peer,
              const Shape& shape, Index tokens) {
  const auto weights = static_cast<double>(shape.weights_per_expert());
  const double weight_bytes = peer.is_int8() ? 1 : sizeof(float);
  // As many copies as of our own layer, used in turn.
  auto& layers = Kept::get<std::deque<PeerLayer<Bank>>>(name.substr(0, name.rfind('/')), [&] {
    std::deque<PeerLayer<Bank>> copies;
    const double bytes = static_cast<double>(shape.num_experts) * weights * weight_bytes;
    for (std::size_t i = 0; i < copies_needed(bytes); ++i) copies.emplace_back(peer, shape);
    return copies;
  });
  static std::map<std::string, Preparation> preparations;
  Preparation& prepared = preparations[name];
  const bool is_first = prepared.routings == 0;
  RoutingSet set(shape, tokens, Skew::uniform);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);
  Matrix<float> y(tokens, shape.d_model);
  moe::Workspace<float> workspace;
  const auto theirs = [&](std::size_t copy, std::size_t turn, Form form) {
    layers[copy % layers.size()].forward(x, set.at(turn), y, form);
    benchmark::DoNotOptimize(y.data());
  };
  const auto ours = [&](std::size_t copy, std::size_t turn) {
    layers[copy % layers.size()].ours().forward(x, set.at(turn), y, workspace);
    benchmark::DoNotOptimize(y.data());
  };
  if (is_first) {
    // Every routing once on every copy, since some libraries prepare for each number of rows; where
    // that takes long, fewer routings.
    const double seconds =
        seconds_of([&] { theirs(0, 0, Form{}); }) * static_cast<double>(layers.size());
    prepared.routings = static_cast<std::uint64_t>(std::clamp(3 / seconds, 2.0, 16.0));
  }
  set = RoutingSet(shape, tokens, Skew::uniform, prepared.routings);
  if (is_first) {
    const std::vector<Form> forms = layers[0].forms();
    for (std::size_t copy = 0; copy < layers.size(); ++copy) {
      for (std::size_t turn = 0; turn < set.routings.size(); ++turn) {
        for (const Form form : forms) theirs(copy, turn, form);
        ours(copy, turn);
      }
    }
    prepared.form = fastest(forms, [&](std::size_t turn, std::size_t call, Form form) {
      ours(call, turn);  // As below: what the one before has read is gone from the caches.
      return seconds_of([&] { theirs(call, turn, form); });
    });
  }
  // Ours runs after each of theirs, so that share and ratio are of the same minute.
  std::vector<double> times_ours;
  double their_seconds = 0;
  std::size_t turn = 0;
  measure_against_limits(
      state,
      {.tokens = static_cast<double>(tokens),
       .flop = shape.forward_flop(tokens),
       .weight_bytes = set.mean_touched * weights * weight_bytes,
       .is_integer = peer.is_int8() && vnni_limit().best() > 0},
      [&] { their_seconds = seconds_of([&] { theirs(turn, turn, prepared.form); }); },
      [&] {
        times_ours.push_back(their_seconds / seconds_of([&] { ours(turn, turn); }));
        ++turn;
      });
  state.counters["times_ours"] = median(times_ours);
  state.SetLabel(layers[0].has_block()
                     ? "the library's own block"
                     : std::string(prepared.form.side_by_side ? "experts side by side"
                                                              : "experts one after the other") +
                           (prepared.form.fuses_gate ? ", gate and up as one product" : ""));
}

template <class Bank>
void register_with(const Shape& shape, bool is_int8 = false) {
  static const std::vector<std::unique_ptr<Peer>> peers = make_peers();
  for (const auto& peer : peers) {
    if (peer->is_int8() != is_int8) continue;
    for (const Index tokens : token_counts) {
      const std::string name =
          label("peer:" + peer->name(), shape, is_int8 ? "int8" : "f32", tokens);
      add_benchmark(name, benchmark::kMillisecond, [=, &peer = *peer](benchmark::State& state) {
        try {
          run_peer<Bank>(state, name, peer, shape, tokens);
        } catch (const std::runtime_error& error) {
          state.SkipWithError(error.what());
        }
      });
    }
  }
}

}  // namespace

std::vector<std::unique_ptr<Peer>> make_peers() {
  std::vector<std::unique_ptr<Peer>> peers;
  peers.push_back(make_eigen());
#if defined(MOE_PEER_OPENBLAS)
  peers.push_back(make_openblas());
#endif
#if defined(MOE_PEER_ONEDNN)
  peers.push_back(make_onednn());
  peers.push_back(make_onednn_int8());
#endif
#if defined(MOE_PEER_TORCH)
  peers.push_back(make_torch());
#endif
#if defined(MOE_PEER_GGML)
  peers.push_back(make_ggml());
#endif
#if defined(MOE_PEER_ONNXRUNTIME)
  peers.push_back(make_onnxruntime());
#endif
  return peers;
}

void register_peers(const Shape& shape) {
  if (shape.gating == Gating::gated) {
    register_with<moe::SwiGluExperts<float>>(shape);
    register_with<moe::QuantizedExperts<moe::SwiGlu>>(shape, true);
  } else {
    register_with<moe::ReluExperts<float>>(shape);
  }
}

}  // namespace benchmarks
