// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Slots of memory for experts of a file, and who fills them (POSIX).
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/mapped_file.hpp"

namespace moe::inline MOE_ABI::io {

/// What a cache has done.
struct CacheCounters {
  std::uint64_t hits = 0;      ///< experts that were there when a forward asked for them
  std::uint64_t awaited = 0;   ///< those that were on their way
  std::uint64_t misses = 0;    ///< those that were not
  double bytes = 0;            ///< read from the file
  double waiting_seconds = 0;  ///< of forwards, for experts
};

namespace detail {

/// Slots of memory for experts of one file, and threads that fill them.
class ExpertSlots {
 public:
  struct Piece {
    std::string tensor;
    std::uint64_t offset;
    std::size_t bytes;
  };

  /// Throws  std::invalid_argument if the budget is smaller than the largest expert, or no number;
  ///         std::system_error if the system gives no thread.
  ExpertSlots(MappedFile file, std::vector<Piece> experts, double budget)
      : file_(std::move(file)),
        experts_(std::move(experts)),
        slot_of_(experts_.size(), none),
        failures_(experts_.size()) {
    const Piece& largest =
        *std::max_element(experts_.begin(), experts_.end(),
                          [](const Piece& a, const Piece& b) { return a.bytes < b.bytes; });
    const std::size_t most = largest.bytes;
    const double slots = std::floor(budget / static_cast<double>(most));
    if (!(slots >= 1))
      moe::detail::throw_invalid(
          "CachedExperts",
          moe::detail::text_of(file_.path(), ": '", largest.tensor, "' at byte ", largest.offset,
                               ", the largest expert, has ", most, " bytes, more than the budget"));
    slots_.resize(static_cast<std::size_t>(std::min(slots, static_cast<double>(experts_.size()))));
    for (Slot& slot : slots_) slot.memory = AlignedBuffer<std::byte>(most);
    const std::size_t readers = std::min(most_readers, slots_.size());
    readers_.reserve(readers);
    try {
      while (readers_.size() < readers) readers_.emplace_back([this] { read_queued(); });
    } catch (...) {
      if (readers_.empty()) throw;  // Fewer do as well.
    }
  }
  ExpertSlots(const ExpertSlots&) = delete;
  ExpertSlots& operator=(const ExpertSlots&) = delete;
  ~ExpertSlots() {
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    queued_.notify_all();
    for (std::thread& reader : readers_) reader.join();
  }

  std::size_t size() const noexcept { return slots_.size(); }

  CacheCounters counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

  /// Experts that stay.
  void pin(std::span<const Index> experts) {
    const std::set<Index> pinned(experts.begin(), experts.end());
    moe::detail::check(pinned.size() < slots_.size() || slots_.size() == experts_.size(),
                       "CachedExperts::pin", "the pinned experts leave no room for others");
    std::unique_lock lock(mutex_);
    pinned_ = pinned;
    for (const Index e : pinned_) request(e);
  }

  /// Asks for experts without waiting for them: as many of those that are not there as there is
  /// room for beside those that are.
  void prefetch(std::span<const Index> experts) {
    std::unique_lock lock(mutex_);
    wanted_ = std::set<Index>(experts.begin(), experts.end());
    forwards_wanted_ = 2;
    for (const Index e : experts) request(e, true);
  }

  /// As many of the experts as there is room for are there when it returns, and stay until
  /// `release`. Those come first that need not be read.
  std::vector<Index> acquire(const std::vector<Index>& experts) {
    std::unique_lock lock(mutex_);
    std::vector<Index> order = experts;
    std::stable_partition(order.begin(), order.end(), [&](Index e) { return slot(e) != none; });
    leave_out_excess(order);
    held_.insert(order.begin(), order.end());
    for (const Index e : order) wanted_.erase(e);  // Those that it wanted it has.
    for (const Index e : order) {
      const bool is_known = slot(e) != none;
      const bool is_there = is_known && slots_[slot(e)].is_loaded;
      ++(is_there ? counters_.hits : is_known ? counters_.awaited : counters_.misses);
    }
    for (const Index e : order) failures_[static_cast<std::size_t>(e)] = nullptr;
    request_all(order);
    const auto start = std::chrono::steady_clock::now();
    for (const Index e : order) {
      while (slot(e) == none || !slots_[slot(e)].is_loaded) {
        if (const std::exception_ptr failure = failures_[static_cast<std::size_t>(e)]) {
          held_.clear();
          std::rethrow_exception(failure);
        }
        loaded_.wait(lock);
        request_all(order);  // There may be room now for those that found none.
      }
      slots_[slot(e)].used = ++clock_;
    }
    counters_.waiting_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return order;
  }

  const std::byte* data(Index e) const {
    const std::lock_guard lock(mutex_);
    return slots_[slot(e)].memory.data();
  }

  /// Lets go of what was acquired.
  void release() noexcept {
    const std::lock_guard lock(mutex_);
    held_.clear();
  }

  /// Pinned experts that found no slot get one now. What was prefetched and not used is wanted for
  /// the next two forwards: the first may be one of tokens before those that it is for.
  void begin_forward() {
    const std::lock_guard lock(mutex_);
    for (const Index e : pinned_)
      if (failures_[static_cast<std::size_t>(e)] == nullptr) request(e);
    if (forwards_wanted_ == 0) wanted_.clear();
    if (forwards_wanted_ > 0) --forwards_wanted_;
  }

 private:
  static constexpr std::size_t none = ~std::size_t{0};
  /// One reader finds no core while the threads of a forward are busy, and what it reads is late
  /// for the next forward. With 1, 2, 3 and 4 readers (two cores, a file in the page cache, experts
  /// of 2.7 and 3.5 MB, asked for one step of four tokens ahead) a step took 1, 0.94 to 0.98, 0.85
  /// to 0.90 and 0.77 to 0.91 of its time, and waited 0.68 to 0.76, 0.06 to 0.32, 0.04 to 0.11 and
  /// 0.03 to 0.17 of what it waits on demand with as many. From a disk they made no difference
  /// beyond noise.
  static constexpr std::size_t most_readers = 4;

  struct Slot {
    AlignedBuffer<std::byte> memory;
    Index expert = -1;
    bool is_loaded = false;
    bool is_queued = false;
    std::uint64_t used = 0;
  };

  std::size_t slot(Index e) const noexcept { return slot_of_[static_cast<std::size_t>(e)]; }

  /// Pinned experts that are not asked for keep their slots.
  void leave_out_excess(std::vector<Index>& order) const {
    if (slots_.size() == experts_.size()) return;
    std::size_t room = slots_.size() - pinned_.size();
    std::erase_if(order, [&](Index e) {
      if (pinned_.count(e) != 0) return false;
      if (room == 0) return true;
      --room;
      return false;
    });
  }

  /// Gives the expert a slot, if one can be had: the one whose expert was used least recently.
  /// What the next tokens want goes last, and not for others of them.
  void request(Index e, bool is_prefetch = false) {
    if (slot(e) != none) return;
    const auto rank = [&](const Slot& of) {
      return std::pair(wanted_.count(of.expert) != 0, of.used);
    };
    std::size_t best = none;
    for (std::size_t s = 0; s < slots_.size(); ++s) {
      const Slot& its = slots_[s];
      if (its.expert >= 0 &&
          (its.is_queued || pinned_.count(its.expert) != 0 || held_.count(its.expert) != 0))
        continue;
      if (is_prefetch && wanted_.count(its.expert) != 0) continue;
      if (best == none || rank(its) < rank(slots_[best])) best = s;
    }
    if (best == none) return;
    Slot& chosen = slots_[best];
    if (chosen.expert >= 0) slot_of_[static_cast<std::size_t>(chosen.expert)] = none;
    chosen.expert = e;
    chosen.is_loaded = false;
    chosen.is_queued = true;
    chosen.used = ++clock_;
    slot_of_[static_cast<std::size_t>(e)] = best;
    queue_.push_back(best);
    queued_.notify_one();
  }

  /// What a forward waits for, but for those that could not be read.
  void request_all(const std::vector<Index>& experts) {
    for (const Index e : experts) {
      if (failures_[static_cast<std::size_t>(e)] != nullptr) continue;
      request(e);
      hurry(e);
    }
  }

  /// Whoever is waited for is read before who may be asked for, unless that has begun.
  void hurry(Index e) {
    const auto at = std::find(queue_.begin(), queue_.end(), slot(e));
    if (at == queue_.end()) return;
    // Behind those that are waited for already.
    const auto first = std::find_if(
        queue_.begin(), at, [&](std::size_t s) { return held_.count(slots_[s].expert) == 0; });
    std::rotate(first, at, at + 1);
  }

  void read_queued() {
    std::unique_lock lock(mutex_);
    while (true) {
      queued_.wait(lock, [&] { return stops_ || !queue_.empty(); });
      if (stops_) return;
      Slot& slot = slots_[queue_.front()];
      queue_.pop_front();
      const Piece& piece = experts_[static_cast<std::size_t>(slot.expert)];
      lock.unlock();
      std::exception_ptr failure;
      try {
        file_.read(piece.offset, {slot.memory.data(), piece.bytes});
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      slot.is_queued = false;
      if (failure) {
        slot_of_[static_cast<std::size_t>(slot.expert)] = none;
        failures_[static_cast<std::size_t>(slot.expert)] = failure;
        slot.expert = -1;
      } else {
        slot.is_loaded = true;
        counters_.bytes += static_cast<double>(piece.bytes);
      }
      loaded_.notify_all();
    }
  }

  MappedFile file_;
  std::vector<Piece> experts_;
  std::vector<std::size_t> slot_of_;  // (E)
  std::vector<Slot> slots_;
  std::deque<std::size_t> queue_;  // slots to fill
  std::set<Index> pinned_;
  std::set<Index> held_;     // by a forward
  std::set<Index> wanted_;   // by the next tokens
  int forwards_wanted_ = 0;  // forwards until wanted_ is forgotten
  std::uint64_t clock_ = 0;
  CacheCounters counters_;
  std::vector<std::exception_ptr> failures_;  // (E), of the last attempt to read
  bool stops_ = false;
  mutable std::mutex mutex_;
  std::condition_variable queued_;  // for the readers
  std::condition_variable loaded_;  // or failed to be, for the forward
  std::vector<std::thread> readers_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI::io
