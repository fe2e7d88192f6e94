#include "comm/cpu_communicator.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <limits>

#include "base/random.h"
#include "comm/rank_order.h"
#include "comm/single_communicator.h"
#include "numerics/bfloat16.h"
#include "ranks.h"

using namespace octet;

namespace {

using RawBytes = std::vector<std::byte>;

// A tensor of host memory.
struct HostTensor {
  RawBytes bytes;
  Tensor view;
  HostTensor(DType dtype, int64_t n) : bytes(static_cast<size_t>(n) * size_of(dtype) + 1) {
    view = {.data = bytes.data(), .dtype = dtype, .shape = {n}};
  }
  RawBytes content() const {
    return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(view.bytes())};
  }
};

// Rank r's values: of very different sizes, so that the order of a sum shows.
HostTensor values_of(DType dtype, int rank, int64_t n, int round = 0) {
  HostTensor tensor(dtype, n);
  const uint64_t key =
      random_key(7, Purpose::Test, static_cast<uint64_t>(rank), static_cast<uint64_t>(round));
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = random_bits(key, static_cast<uint64_t>(i));
    const double value =
        random_normal(key, static_cast<uint64_t>(i)) * std::ldexp(1.0, static_cast<int>(bits % 30) - 15);
    if (dtype == DType::F32)
      tensor.view.as<float>()[i] = static_cast<float>(value);
    else if (dtype == DType::F64)
      tensor.view.as<double>()[i] = value;
    else if (dtype == DType::BF16)
      tensor.view.as<BFloat16>()[i] = to_bfloat16(static_cast<float>(value));
    else
      for (size_t b = 0; b < size_of(dtype); ++b)
        tensor.bytes[static_cast<size_t>(i) * size_of(dtype) + b] =
            static_cast<std::byte>(bits >> (8 * (b % 4)));
  }
  return tensor;
}

// The reduction, one element at a time. `order` is in which the ranks are added.
RawBytes reduced(DType dtype, Reduction reduction, int64_t n, std::vector<int> order, int round = 0) {
  HostTensor out(dtype, n);
  std::vector<HostTensor> all;
  for (const int r : order) all.push_back(values_of(dtype, r, n, round));
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::U32) {
      uint32_t most = 0;
      for (const HostTensor& one : all) most = std::max(most, one.view.as<uint32_t>()[i]);
      out.view.as<uint32_t>()[i] = most;
    } else if (dtype == DType::U64) {
      uint64_t sum = 0;
      for (const HostTensor& one : all) sum += one.view.as<uint64_t>()[i];
      out.view.as<uint64_t>()[i] = sum;
    } else if (dtype == DType::F64) {
      double sum = all[0].view.as<double>()[i];
      for (size_t k = 1; k < all.size(); ++k) sum += all[k].view.as<double>()[i];
      out.view.as<double>()[i] = sum;
    } else {
      const auto value = [&](const HostTensor& one) {
        return dtype == DType::F32 ? one.view.as<float>()[i] : to_float(one.view.as<BFloat16>()[i]);
      };
      float result = value(all[0]);
      for (size_t k = 1; k < all.size(); ++k)
        result = reduction == Reduction::Sum ? result + value(all[k]) : std::max(result, value(all[k]));
      if (dtype == DType::F32)
        out.view.as<float>()[i] = result;
      else
        out.view.as<BFloat16>()[i] = to_bfloat16(result);
    }
  }
  return out.content();
}
std::vector<int> rising(int ranks) {
  std::vector<int> order;
  for (int r = 0; r < ranks; ++r) order.push_back(r);
  return order;
}

using CommBody = std::function<std::string(Communicator&, ControlPlane&)>;

std::vector<std::string> run_collectives(int ranks, const CommBody& body,
                                         DataTransport transport = DataTransport::Auto) {
  return run_as_threads(ranks, [&](const Launch& launch) {
    const auto device = make_cpu_device({.threads = 1});
    ControlPlane control(launch, {}, quick_options(launch));
    std::string result;
    {
      CpuCommunicator comm(control, *device, {.transport = transport});
      result = body(comm, control);
    }
    control.finish();
    return result;
  });
}

RawBytes piece(const RawBytes& whole, int ranks, int r) {
  const auto length = static_cast<std::ptrdiff_t>(whole.size()) / ranks;
  return {whole.begin() + r * length, whole.begin() + (r + 1) * length};
}

// Every collective once; the first that differs from the serial oracle.
std::string first_wrong(Communicator& comm, int64_t n) {
  const int ranks = comm.ranks(), self = comm.rank();
  struct Sum {
    DType dtype;
    Reduction reduction;
  };
  for (const Sum& sum :
       {Sum{DType::F32, Reduction::Sum}, Sum{DType::F64, Reduction::Sum}, Sum{DType::BF16, Reduction::Sum},
        Sum{DType::U64, Reduction::Sum}, Sum{DType::F32, Reduction::Max}, Sum{DType::U32, Reduction::Max}}) {
    HostTensor buffer = values_of(sum.dtype, self, n);
    comm.wait(comm.all_reduce(buffer.view, sum.reduction));
    if (buffer.content() != reduced(sum.dtype, sum.reduction, n, rising(ranks)))
      return fmt::format("all_reduce {} {}", name_of(sum.dtype), n);
    for (const bool in_place : {false, true}) {
      HostTensor whole = values_of(sum.dtype, self, n * ranks), part(sum.dtype, n);
      if (in_place) part.view = whole.view.slice(self * n, n);
      comm.wait(comm.reduce_scatter(part.view, whole.view, sum.reduction));
      const RawBytes expected =
          piece(reduced(sum.dtype, sum.reduction, n * ranks, rising(ranks)), ranks, self);
      if (n > 0 && std::memcmp(part.view.data, expected.data(), expected.size()) != 0)
        return fmt::format("reduce_scatter {} {}", name_of(sum.dtype), n);
    }
  }
  for (const DType dtype : {DType::U8, DType::BF16, DType::F32, DType::I64}) {
    for (const bool in_place : {false, true}) {
      HostTensor whole(dtype, n * ranks), part = values_of(dtype, self, n);
      if (in_place) {
        const Tensor place = whole.view.slice(self * n, n);
        if (n > 0) std::memcpy(place.data, part.view.data, part.view.bytes());
        comm.wait(comm.all_gather(whole.view, place));
      } else {
        comm.wait(comm.all_gather(whole.view, part.view));
      }
      for (int r = 0; r < ranks; ++r)
        if (piece(whole.content(), ranks, r) != values_of(dtype, r, n).content())
          return fmt::format("all_gather {} {}", name_of(dtype), n);
    }
    HostTensor received(dtype, n * ranks), sent = values_of(dtype, self, n * ranks);
    comm.wait(comm.all_to_all(received.view, sent.view));
    for (int r = 0; r < ranks; ++r)
      if (piece(received.content(), ranks, r) != piece(values_of(dtype, r, n * ranks).content(), ranks, self))
        return fmt::format("all_to_all {} {}", name_of(dtype), n);
    for (int root = 0; root < ranks; ++root) {
      HostTensor buffer = values_of(dtype, self, n);
      comm.wait(comm.broadcast(buffer.view, root));
      if (buffer.content() != values_of(dtype, root, n).content())
        return fmt::format("broadcast {} {} from {}", name_of(dtype), n, root);
    }
  }
  comm.barrier();
  return "right";
}

}  // namespace

TEST_CASE(
    "every collective gives the serial result to the bit on every rank, at ragged sizes, over both "
    "transports") {
  for (const DataTransport transport : {DataTransport::Auto, DataTransport::Tcp})
    for (const int ranks : {1, 2, 3, 4})
      for (const auto& result : run_collectives(
               ranks,
               [](Communicator&comm, ControlPlane&) {
                 for (const int64_t n : {0, 1, 2, 3, 7, 1021})
                   if (const std::string wrong = first_wrong(comm, n); wrong != "right") return wrong;
                 return std::string("right");
               },
               transport))
        CHECK(result == "right");
}

TEST_CASE("tensors of several chunks are whole, and large broadcasts too") {
  // Pieces beyond the 256 KiB of a chunk, and the 64 KiB of a direct broadcast.
  const int64_t n = 70001;
  static_assert(n * sizeof(float) > (size_t{256} << 10));
  for (const auto& result : run_collectives(3, [](Communicator&comm, ControlPlane&) {
         HostTensor buffer = values_of(DType::F32, comm.rank(), 3 * n);
         comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
         const RawBytes expected = reduced(DType::F32, Reduction::Sum, 3 * n, rising(3));
         if (buffer.content() != expected) return std::string("all_reduce");
         HostTensor whole = values_of(DType::F32, comm.rank(), 3 * n), part(DType::F32, n);
         comm.wait(comm.reduce_scatter(part.view, whole.view, Reduction::Sum));
         if (part.content() != piece(expected, 3, comm.rank())) return std::string("reduce_scatter");
         for (int root = 0; root < 3; ++root) {
           HostTensor one = values_of(DType::U8, comm.rank(), n + root);
           comm.wait(comm.broadcast(one.view, root));
           if (one.content() != values_of(DType::U8, root, n + root).content())
             return fmt::format("broadcast {}", root);
         }
         return std::string("right");
       }))
    CHECK(result == "right");
}

TEST_CASE("a sum is in rank order: another order has other bits") {
  CHECK(reduced(DType::F32, Reduction::Sum, 1000, {0, 1, 2, 3}) !=
        reduced(DType::F32, Reduction::Sum, 1000, {3, 2, 1, 0}));
  CHECK(reduced(DType::F64, Reduction::Sum, 1000, {0, 1, 2, 3}) !=
        reduced(DType::F64, Reduction::Sum, 1000, {0, 2, 1, 3}));
  const std::array<float, 4> one{1e8f, 1.0f, -1e8f, 1.0f};
  std::vector<const void*> sources;
  for (const float& value : one) sources.push_back(&value);
  float sum = 0;
  reduce_in_rank_order(DType::F32, Reduction::Sum, sources, &sum, 1);
  CHECK(sum == 1.0f);  // 1e8 + 1 is 1e8 in FP32
  std::swap(sources[1], sources[2]);
  reduce_in_rank_order(DType::F32, Reduction::Sum, sources, &sum, 1);
  CHECK(sum == 2.0f);
}

TEST_CASE("BF16 is summed in FP32 and rounded once") {
  // Rounded at each of the four hops, 1 + 2^-8 would stay 1 (a tie to even); 1 + 4 * 2^-8 is exact in BF16.
  const std::vector<BFloat16> terms{to_bfloat16(1.0f), to_bfloat16(0x1p-8f), to_bfloat16(0x1p-8f),
                                    to_bfloat16(0x1p-8f), to_bfloat16(0x1p-8f)};
  std::vector<const void*> sources;
  for (const BFloat16& term : terms) sources.push_back(&term);
  BFloat16 sum{};
  reduce_in_rank_order(DType::BF16, Reduction::Sum, sources, &sum, 1);
  CHECK(to_float(sum) == 1.0f + 0x1p-6f);
  float hop = 1.0f;
  for (int i = 0; i < 4; ++i) hop = round_to_bfloat16(hop + 0x1p-8f);
  CHECK(hop == 1.0f);
}

TEST_CASE("NaN wins a maximum at any rank") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (size_t where = 0; where < 3; ++where) {
    std::array<float, 3> values{1.0f, 5.0f, 3.0f};
    values[where] = nan;
    const std::vector<const void*> sources{&values[0], &values[1], &values[2]};
    float most = 0;
    reduce_in_rank_order(DType::F32, Reduction::Max, sources, &most, 1);
    CHECK(std::isnan(most));
  }
  CHECK_FALSE(can_reduce(DType::E4M3, Reduction::Sum));
  CHECK_FALSE(can_reduce(DType::I64, Reduction::Max));
  CHECK_FALSE(can_reduce(DType::U64, Reduction::Max));
}

TEST_CASE("many operations in flight end in order, each with its own result") {
  const auto results = run_collectives(3, [](Communicator& comm, ControlPlane&) {
    std::vector<HostTensor> buffers;
    std::vector<Communicator::Ticket> tickets;
    for (int round = 0; round < 20; ++round) {
      buffers.push_back(values_of(DType::F32, comm.rank(), 100 + round, round));
      tickets.push_back(comm.all_reduce(buffers.back().view, Reduction::Sum));
    }
    for (int round = 1; round < 20; ++round)
      if (tickets[static_cast<size_t>(round)] <= tickets[static_cast<size_t>(round) - 1])
        return std::string("tickets do not rise");
    comm.wait(tickets[19]);
    for (int round = 0; round < 20; ++round)
      if (buffers[static_cast<size_t>(round)].content() !=
          reduced(DType::F32, Reduction::Sum, 100 + round, rising(3), round))
        return fmt::format("round {} differs", round);
    comm.wait(tickets[3]);  // long done
    return std::string("right");
  });
  CHECK(results == std::vector<std::string>(3, "right"));
}

TEST_CASE("traffic is what the shapes of the collectives say") {
  // 3 ranks, 300 F32 (1200 bytes): reduce-scatter and all-gather send two thirds each, all_to_all two thirds.
  const auto results = run_collectives(3, [](Communicator& comm, ControlPlane&) {
    HostTensor buffer(DType::F32, 300), other(DType::F32, 300);
    comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
    const Traffic first = comm.traffic();
    comm.wait(comm.all_to_all(other.view, buffer.view));
    comm.barrier();
    const Traffic second = comm.traffic();
    return fmt::format("{} {}", first.sent(), second.sent());
  });
  CHECK(results == std::vector<std::string>(3, "1600 2400"));
}

TEST_CASE("ranks that call different operations are told what each called") {
  const auto run = [](const CommBody& odd) {
    return run_collectives(3, [&](Communicator& comm, ControlPlane& control) {
      if (comm.rank() == 1) return odd(comm, control);
      HostTensor buffer(DType::F32, 99);
      comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
      return std::string("passed");
    });
  };
  struct Case {
    std::string name;
    CommBody body;
  };
  const auto reduce = [](DType dtype, int64_t n, Reduction reduction) {
    return [=](Communicator& comm, ControlPlane&) {
      HostTensor buffer(dtype, n);
      comm.wait(comm.all_reduce(buffer.view, reduction));
      return std::string("passed");
    };
  };
  const std::vector<Case> cases{{"all_reduce sum of 98 F32", reduce(DType::F32, 98, Reduction::Sum)},
                                {"all_reduce max of 99 F32", reduce(DType::F32, 99, Reduction::Max)},
                                {"all_reduce sum of 198 BF16", reduce(DType::BF16, 198, Reduction::Sum)},
                                {"broadcast of 99 F32 from rank 2", [](Communicator& comm, ControlPlane&) {
                                   HostTensor buffer(DType::F32, 99);
                                   comm.wait(comm.broadcast(buffer.view, 2));
                                   return std::string("passed");
                                 }}};
  for (const Case& one : cases)
    for (const std::string& result : run(one.body))
      CHECK_THAT(result, contains_text("ranks do different things") &&
                             contains_text("all_reduce sum of 99 F32") && contains_text(one.name));
  CHECK(run(reduce(DType::F32, 99, Reduction::Sum)) == std::vector<std::string>(3, "passed"));
}

TEST_CASE("a rank that dies, stops or leaves inside a collective takes the others out of it by name") {
  for (const int victim : {0, 1})
    for (const std::string how : {"kill", "stop", "exit", "leave"}) {
      RankProcesses processes(3, [&](const Launch& launch) {
        const auto device = make_cpu_device({.threads = 1});
        ControlOptions options = quick_options(launch);
        if (how == "stop") options.rendezvous.timing.deadline_seconds = 1;
        ControlPlane control(launch, {}, options);
        CpuCommunicator comm(control, *device);
        HostTensor buffer(DType::F32, 1 << 16);
        control.set_phase("backward", 11);
        comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
        if (launch.rank == victim) {
          control.set_phase("reduce", 12);
          if (how == "kill") raise(SIGKILL);
          if (how == "stop") raise(SIGSTOP);
          if (how == "exit") _exit(0);
          return std::string("left");
        }
        // Large enough to be under way when the other one goes.
        HostTensor large(DType::F32, 1 << 20);
        comm.wait(comm.all_reduce(large.view, Reduction::Sum));
        return std::string("passed");
      });
      for (int r = 0; r < 3; ++r) {
        if (r == victim) continue;
        INFO(how << " of rank " << victim << ", seen by rank " << r);
        CHECK_THAT(processes.result(r), contains_text(fmt::format("exit 31: rank {} (host host{}, pid {})",
                                                                  victim, victim, processes.pid(victim))) &&
                                            contains_text("at step 12, phase reduce"));
      }
    }
}

TEST_CASE("a rank that finishes while the others reduce is named, although its process lives") {
  const auto results = run_as_threads(3, [](const Launch& launch) {
    const auto device = make_cpu_device({.threads = 1});
    ControlOptions options = quick_options(launch);
    options.rendezvous.timing.deadline_seconds = 1;  // a goodbye is held against a rank after so long
    ControlPlane control(launch, {}, options);
    CpuCommunicator comm(control, *device);
    control.set_phase("step", 20);
    if (launch.rank != 2) {
      HostTensor buffer(DType::F32, 10);
      comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
    }
    control.finish();
    return std::string("passed");
  });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("exit 31: rank 2 (host host2") &&
                           contains_text("left the run while others still needed it"));
}

TEST_CASE("after a failure every further call says the same") {
  const auto results = run_collectives(2, [](Communicator& comm, ControlPlane& control) {
    HostTensor buffer(DType::F32, 10);
    if (comm.rank() == 1) control.abort("no more");
    std::string text;
    for (int i = 0; i < 3; ++i) {
      try {
        comm.wait(comm.all_reduce(buffer.view, Reduction::Sum));
        text += "passed ";
      } catch (const Error& error) {
        text +=
            std::string(error.what()).find("gave up: no more") != std::string::npos ? "told " : error.what();
      }
    }
    return text;
  });
  // The communicator and the plane end with the failure too.
  for (const std::string& result : results) CHECK_THAT(result, contains_text("gave up: no more"));
}

TEST_CASE("memory that sockets cannot reach is staged through the host") {
  const auto results = run_as_threads(2, [](const Launch& launch) {
    const auto device = make_cpu_device({.threads = 1});
    ControlPlane control(launch, {}, quick_options(launch));
    std::string text;
    {
      CpuCommunicator comm(control, *device, {.staging = CpuCommunicatorOptions::Staging::Always});
      const auto on_device = [&](const HostTensor& host) {
        Tensor tensor = host.view;
        tensor.data = device->allocate(tensor.bytes());
        device->copy_from_host(tensor.data, host.view.data, tensor.bytes());
        return tensor;
      };
      const auto content = [&](const Tensor& tensor) {
        RawBytes bytes(tensor.bytes());
        device->copy_to_host(bytes.data(), tensor.data, bytes.size());
        return bytes;
      };
      const int64_t n = 100;
      const Tensor sum = on_device(values_of(DType::F32, launch.rank, n));
      const Tensor whole = on_device(values_of(DType::F32, launch.rank, 2 * n));
      const Tensor gathered = on_device(HostTensor(DType::F32, 2 * n)),
                   swapped = on_device(HostTensor(DType::F32, n));
      // One after the other without a wait: each sees the results before it.
      comm.all_reduce(sum, Reduction::Sum);
      const Tensor part = whole.slice(launch.rank * n, n);
      comm.reduce_scatter(part, whole, Reduction::Sum);
      comm.all_gather(gathered, part);
      comm.all_to_all(swapped, sum);
      comm.wait(comm.broadcast(sum, 1));
      text += content(sum) == reduced(DType::F32, Reduction::Sum, n, {0, 1}) ? "sum " : "wrong sum ";
      text += content(gathered) == reduced(DType::F32, Reduction::Sum, 2 * n, {0, 1}) ? "gathered "
                                                                                      : "wrong gathered ";
      const RawBytes mine = piece(content(sum), 2, launch.rank);
      text += piece(content(swapped), 2, 0) == mine && piece(content(swapped), 2, 1) == mine
                  ? "swapped"
                  : "wrong swapped";
      for (const Tensor& tensor : {sum, whole, gathered, swapped}) device->free(tensor.data);
    }
    control.finish();
    return text;
  });
  CHECK(results == std::vector<std::string>(2, "sum gathered swapped"));
}

TEST_CASE("one rank alone gives the same results without anybody else") {
  const auto device = make_cpu_device({.threads = 1});
  SingleCommunicator comm(*device);
  CHECK(first_wrong(comm, 100) == "right");
  CHECK(comm.traffic().sent() == 0);
}

// What docs/results/cpu-collectives.md shows: build/tests/test_comm "[.benchmark]"
TEST_CASE("time of collectives between processes of one machine", "[.benchmark]") {
  for (const DataTransport transport : {DataTransport::Auto, DataTransport::Tcp})
    for (const int ranks : {2, 4}) {
      RankProcesses processes(ranks, [&](const Launch& launch) {
        const auto device = make_cpu_device({.threads = 1});
        ControlPlane control(launch, {}, quick_options(launch));
        std::string text;
        {
          CpuCommunicator comm(control, *device, {.transport = transport});
          for (const int64_t n : {int64_t{1}, int64_t{1} << 10, int64_t{1} << 20, int64_t{1} << 24}) {
            HostTensor buffer(DType::F32, n), separate(DType::F32, n / ranks);
            const Tensor whole = buffer.view.slice(0, n);
            const auto time = [&](const std::function<void()>& operation) {
              const int repetitions = n > (1 << 20) ? 5 : 50;
              operation();
              comm.barrier();
              const double began = monotonic_seconds();
              for (int i = 0; i < repetitions; ++i) operation();
              comm.barrier();
              return (monotonic_seconds() - began) / repetitions * 1e6;
            };
            const double reduce = time([&] { comm.wait(comm.all_reduce(whole, Reduction::Sum)); });
            const Tensor pieces = buffer.view.slice(0, n / ranks * ranks), piece_of = separate.view;
            const double scatter =
                n < ranks ? 0
                          : time([&] { comm.wait(comm.reduce_scatter(piece_of, pieces, Reduction::Sum)); });
            const double gather = n < ranks ? 0 : time([&] { comm.wait(comm.all_gather(pieces, piece_of)); });
            text += fmt::format("| {} | {} | {} | {:.0f} | {:.0f} | {:.0f} |\n",
                                transport == DataTransport::Auto ? "Unix" : "TCP", ranks, n, reduce, scatter,
                                gather);
          }
        }
        control.finish();
        return text;
      });
      std::printf("%s", processes.result(0).c_str());
    }
}
