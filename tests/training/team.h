// Ranks as threads of one process, and what each of them holds of a made-up training state.
#pragma once
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "training/helpers.h"
#include "training/rank_group.h"

namespace octet::testing {

inline thread_local int this_rank = -1;  // of the thread, for hooks

// The control plane's part: gathers strings; once a rank is lost, everybody gets an error.
class Team {
 public:
  explicit Team(int ranks) : ranks_(ranks) {}
  // Called when all have contributed to a name, by the last.
  std::function<void(const std::string& name)> on_complete;

  void lose() {
    const std::lock_guard lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }
  RankGroup member(int rank) {
    RankGroup group;
    group.rank = rank;
    group.ranks = ranks_;
    group.all_gather = [this, rank](const std::string& name, const std::string& mine) {
      return gather(rank, name, mine);
    };
    return group;
  }
  // What each rank's call threw ("cause | hint"), or "". A call that throws something else than an exception
  // is a rank that dies.
  std::vector<std::string> run(const std::function<void(RankGroup&)>& call) {
    std::vector<std::string> errors(static_cast<size_t>(ranks_));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks_; ++rank)
      threads.emplace_back([&, rank] {
        this_rank = rank;
        RankGroup group = member(rank);
        std::string& error = errors[static_cast<size_t>(rank)];
        try {
          call(group);
        } catch (const Error& e) {
          error = e.hint().empty() ? e.what() : std::string(e.what()) + " | " + e.hint();
        } catch (const std::exception& e) {
          error = e.what();
        } catch (...) {
          error = "dead";
          lose();
        }
      });
    for (std::thread& thread : threads) thread.join();
    return errors;
  }

 private:
  std::vector<std::string> gather(int rank, const std::string& name, const std::string& mine) {
    std::unique_lock lock(mutex_);
    auto& values = gathered_[name];
    values.resize(static_cast<size_t>(ranks_));
    if (values[static_cast<size_t>(rank)])
      throw Error(ExitCode::Internal, "the name " + name + " was used twice");
    values[static_cast<size_t>(rank)] = mine;
    const auto complete = [&] {
      for (const auto& value : values)
        if (!value) return false;
      return true;
    };
    if (complete() && on_complete) on_complete(name);
    changed_.notify_all();
    changed_.wait(lock, [&] { return complete() || lost_; });
    if (!complete()) throw Error(ExitCode::PeerLost, "a rank is lost");
    std::vector<std::string> all;
    for (const auto& value : values) all.push_back(*value);
    return all;
  }

  int ranks_;
  bool lost_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::vector<std::optional<std::string>>> gathered_;
};

// Three parameters and their moments: a matrix of four pieces of 16384 elements, the last short and of odd
// length; a matrix smaller than one piece, hence rank 0's alone; a gain that every rank holds.
class MadeUpState {
 public:
  explicit MadeUpState(uint32_t seed = 1) {
    const Shape large = {3, 18001}, small = {7, 3}, gain = {5};
    add(0, "large", DType::F32, large, piece, seed);
    add(0, "small", DType::F32, small, piece, seed + 1);
    add(0, "gain", DType::F32, gain, 0, seed + 2);
    add(1, "large.first", DType::E4M3, large, piece, seed + 3);
    add(1, "large.first.inverse_scale", DType::F32, {(large.elements() + 127) / 128}, piece / 128, seed + 4);
    add(1, "large.second", DType::BF16, large, piece, seed + 5);
    add(1, "small.first", DType::E4M3, small, piece, seed + 6);
    add(1, "small.first.inverse_scale", DType::F32, {1}, piece / 128, seed + 7);
    add(1, "gain.first", DType::F32, gain, 0, seed + 8);
    add(2, "amax_history", DType::F32, {4, 3}, 0, seed + 9);
    add(2, "scale", DType::F32, {3}, 0, seed + 10);
  }

  // What one rank holds, in memory of its own.
  struct Held {
    std::vector<std::vector<char>> memory;
    std::vector<Payload> payloads;
    TensorPiece& piece(const std::string& name) {
      for (Payload& p : payloads)
        for (TensorPiece& t : p.tensors)
          if (t.name == name) return t;
      throw std::runtime_error(name);
    }
  };
  Held of(int rank, int ranks) const {
    Held held;
    held.payloads = {
        {"masters.safetensors", {}}, {"moments.safetensors", {}}, {"scale_table.safetensors", {}}};
    for (const Whole& w : wholes_) {
      const int64_t elements = w.shape.elements();
      int64_t begin = 0, end = elements;
      if (ranks > 1 && w.border > 0) {  // the same number of pieces for each, until there are none left
        const int64_t pieces = (elements + w.border - 1) / w.border, each = (pieces + ranks - 1) / ranks;
        begin = std::min(rank * each * w.border, elements);
        end = std::min(begin + each * w.border, elements);
      }
      const size_t size = size_of(w.dtype);
      held.memory.emplace_back(w.bytes.begin() + static_cast<ptrdiff_t>(begin * static_cast<int64_t>(size)),
                               w.bytes.begin() + static_cast<ptrdiff_t>(end * static_cast<int64_t>(size)));
      const Shape shape = end - begin == elements && w.border == 0 ? w.shape : Shape{end - begin};
      held.payloads[w.file].tensors.emplace_back(
          w.name, Tensor{held.memory.back().data(), w.dtype, ranks > 1 ? shape : w.shape}, w.shape, begin);
    }
    return held;
  }

 private:
  static constexpr int64_t piece = 16384;
  struct Whole {
    size_t file;
    std::string name;
    DType dtype;
    Shape shape;
    int64_t border;  // of pieces; 0: not sharded
    std::vector<char> bytes;
  };
  void add(size_t file, const std::string& name, DType dtype, const Shape& shape, int64_t border,
           uint32_t seed) {
    std::vector<char> bytes(static_cast<size_t>(shape.elements()) * size_of(dtype));
    for (size_t i = 0; i < bytes.size(); ++i) {
      seed = seed * 1664525u + 1013904223u;
      bytes[i] = static_cast<char>(seed >> 24 & 0x3f);  // as floats: finite
    }
    wholes_.push_back({file, name, dtype, shape, border, std::move(bytes)});
  }
  std::vector<Whole> wholes_;
};

}  // namespace octet::testing
