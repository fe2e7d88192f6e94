// What NCCL is asked for and how its failures end, without a GPU: a stand-in for the library plays NCCL.
#include <fmt/format.h>

#include <atomic>
#include <thread>

#include "catch.h"
#include "comm/nccl/arguments.h"
#include "comm/nccl/handle.h"
#include "comm/nccl/library.h"
#include "comm/nccl/nccl_communicator.h"
#include "device/cuda/cuda_device.h"
#include "error_of.h"

using namespace octet;

namespace {

// The stand-in: how often it is still in progress, then in which state. Functions of a C library know no
// object.
struct Play {
  std::atomic<int> in_progress{0};
  std::atomic<ncclResult_t> state{ncclSuccess}, init{ncclInProgress};
  std::atomic<int> aborted{0}, destroyed{0}, finalized{0};
  std::atomic<int> blocking{-1}, ranks{0}, rank{-1};
  void begin() {
    in_progress = 0;
    state = ncclSuccess;
    init = ncclInProgress;
    aborted = destroyed = finalized = 0;
    blocking = -1;
  }
};
Play play;
int a_communicator;

Nccl stand_in() {
  Nccl nccl;
  nccl.ncclGetUniqueId = [](ncclUniqueId* id) {
    id->internal[0] = 'x';
    return ncclSuccess;
  };
  nccl.ncclGetErrorString = [](ncclResult_t result) -> const char* {
    return result == ncclRemoteError ? "remote process exited" : "unhandled error";
  };
  nccl.ncclGetLastError = [](ncclComm_t) -> const char* { return "socket closed\n"; };
  nccl.ncclCommInitRankConfig = [](ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                   ncclConfig_t* config) {
    play.blocking = config->blocking;
    play.ranks = ranks;
    play.rank = rank;
    *comm = id.internal[0] == 'x' ? reinterpret_cast<ncclComm_t>(&a_communicator) : nullptr;
    return play.init.load();
  };
  nccl.ncclCommGetAsyncError = [](ncclComm_t, ncclResult_t* state) {
    *state = play.in_progress > 0 ? ncclInProgress : play.state.load();
    if (play.in_progress > 0) --play.in_progress;
    return ncclSuccess;
  };
  nccl.ncclCommFinalize = [](ncclComm_t) {
    ++play.finalized;
    return ncclInProgress;
  };
  nccl.ncclCommDestroy = [](ncclComm_t) {
    ++play.destroyed;
    return ncclSuccess;
  };
  nccl.ncclCommAbort = [](ncclComm_t) {
    ++play.aborted;
    return ncclSuccess;
  };
  return nccl;
}

}  // namespace

TEST_CASE("types and operators are NCCL's own") {
  CHECK(nccl_reduced_type(DType::F32, Reduction::Sum) == ncclFloat32);
  CHECK(nccl_reduced_type(DType::F64, Reduction::Sum) == ncclFloat64);
  CHECK(nccl_reduced_type(DType::BF16, Reduction::Sum) == ncclBfloat16);
  CHECK(nccl_reduced_type(DType::U64, Reduction::Sum) == ncclUint64);
  CHECK(nccl_reduced_type(DType::U32, Reduction::Max) == ncclUint32);
  CHECK(nccl_operator(Reduction::Sum) == ncclSum);
  CHECK(nccl_operator(Reduction::Max) == ncclMax);
}

TEST_CASE("what NCCL would do otherwise than promised is refused") {
  // Its FP8 sums round at every hop, its maximum of floats drops NaN.
  CHECK_THROWS_WITH(nccl_reduced_type(DType::E4M3, Reduction::Sum), contains_text("no sum of F8_E4M3"));
  CHECK_THROWS_WITH(nccl_reduced_type(DType::F32, Reduction::Max), contains_text("no maximum of F32"));
  CHECK_THROWS_WITH(nccl_reduced_type(DType::U32, Reduction::Sum), contains_text("no sum of U32"));
}

TEST_CASE("traffic is counted as the smallest algorithm sends") {
  CHECK(all_reduce_traffic(1200, 3) == 1600);
  CHECK(reduce_scatter_traffic(1200, 3) == 800);
  CHECK(all_reduce_traffic(1200, 1) == 0);
  CHECK(reduce_scatter_traffic(1200, 1) == 0);
}

TEST_CASE("a library without communicators that do not block is too old") {
  CHECK_NOTHROW(check_nccl_version(21400, "libnccl.so.2"));
  const Error error = error_of([] { check_nccl_version(21304, "libnccl.so.2"); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("NCCL 2.13.4 in libnccl.so.2: at least 2.14.0"));
  CHECK_FALSE(error.hint().empty());
}

TEST_CASE("NCCL opens without a GPU and says its version and an id") {
  try {
    const Nccl nccl = open_nccl();
    int version = 0;
    CHECK(nccl.ncclGetVersion(&version) == ncclSuccess);
    CHECK(version >= 21400);
    CHECK(nccl_version().rfind("2.", 0) == 0);
    ncclUniqueId one{}, other{};
    CHECK(nccl.ncclGetUniqueId(&one) == ncclSuccess);
    CHECK(nccl.ncclGetUniqueId(&other) == ncclSuccess);
    CHECK(std::string(one.internal, sizeof one.internal) !=
          std::string(other.internal, sizeof other.internal));
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Hardware);
    WARN("skipped: " << error.what());
  }
}

TEST_CASE("NCCL is asked not to block, and ends in order") {
  play.begin();
  play.in_progress = 500;  // longer than it is waited for without a nap
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  {
    NcclHandle handle(nccl, control);
    CHECK(play.blocking == 0);
    CHECK(play.ranks == 1);
    CHECK(play.rank == 0);
    CHECK(play.in_progress == 0);  // connected before anybody uses it
    play.in_progress = 50;
    int calls = 0;
    handle.issue("all_reduce", [&](ncclComm_t comm) {
      CHECK(comm == reinterpret_cast<ncclComm_t>(&a_communicator));
      ++calls;
      return ncclInProgress;
    });
    CHECK(calls == 1);
    CHECK(play.in_progress == 0);  // on its stream before an event follows
    play.in_progress = 3;          // of the finalisation
  }
  CHECK(play.finalized == 1);
  CHECK(play.destroyed == 1);
  CHECK(play.aborted == 0);
}

TEST_CASE("an error of NCCL is the run's failure, with NCCL's own words, and aborts the communicator") {
  play.begin();
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  {
    NcclHandle handle(nccl, control);
    const Error error =
        error_of([&] { handle.issue("all_reduce", [](ncclComm_t) { return ncclInvalidArgument; }); });
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text("NCCL, all_reduce: unhandled error (socket closed\\x0a)"));
    CHECK(error_of([&] { control.check(); }).code() == ExitCode::Hardware);
    REQUIRE(control.failure().has_value());
    CHECK_THAT(control.failure()->reason, contains_text("NCCL, all_reduce"));
  }
  CHECK(play.aborted == 1);
  CHECK(play.finalized == 0);
}

TEST_CASE("an asynchronous error is seen by the watchdog's question, none is none") {
  play.begin();
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  NcclHandle handle(nccl, control);
  CHECK_FALSE(handle.asynchronous_error().has_value());
  play.in_progress = 1;
  CHECK_FALSE(handle.asynchronous_error().has_value());
  play.state = ncclInvalidUsage;
  CHECK(handle.asynchronous_error() == ncclInvalidUsage);
  handle.abort();
  CHECK(play.aborted == 1);
  CHECK_FALSE(handle.asynchronous_error().has_value());  // nothing is asked of what is gone
}

TEST_CASE("a lost peer is named, not what NCCL saw of it") {
  // NCCL's connection breaks before the control plane knows.
  play.begin();
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  NcclHandle handle(nccl, control);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    control.abort("rank 2 was lost");
  });
  const Error error =
      error_of([&] { handle.issue("all_reduce", [](ncclComm_t) { return ncclRemoteError; }); });
  later.join();
  CHECK(error.code() == ExitCode::PeerLost);
  CHECK_THAT(error.what(), contains_text("rank 2 was lost"));
}

TEST_CASE("a run that fails while NCCL connects ends the wait") {
  play.begin();
  play.in_progress = 1 << 30;
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    control.abort("rank 1 was lost");
  });
  const Error error = error_of([&] { NcclHandle handle(nccl, control); });
  later.join();
  CHECK_THAT(error.what(), contains_text("rank 1 was lost"));
  CHECK(play.aborted == 1);
}

TEST_CASE("ranks that NCCL does not connect within the deadline are an error with a remedy") {
  play.begin();
  play.in_progress = 1 << 30;
  const Nccl nccl = stand_in();
  ControlPlane control(Launch{}, {}, {});
  const Error error = error_of([&] { NcclHandle handle(nccl, control, 0.05); });
  CHECK(error.code() == ExitCode::Hardware);
  CHECK_THAT(error.what(), contains_text("NCCL, connecting the ranks: not done after"));
  CHECK_THAT(error.hint(), contains_text("NCCL_DEBUG"));
  CHECK(play.aborted == 1);
}

TEST_CASE("a device without a CUDA stream is refused") {
  ControlPlane control(Launch{}, {}, {});
  const auto device = make_cpu_device({.threads = 1});
  CHECK_THROWS_WITH(make_nccl_communicator(control, *device), contains_text("NCCL needs a CUDA device"));
}

TEST_CASE("one rank on a GPU: every collective leaves what one rank's result is") {
  std::unique_ptr<Device> device;
  try {
    device = make_cuda_device({});
    open_nccl();
  } catch (const Error& error) {
    WARN("skipped: " << error.what());
    return;
  }
  ControlPlane control(Launch{}, {}, {});
  {
    const std::unique_ptr<Communicator> comm = make_nccl_communicator(control, *device);
    const int64_t n = 1000;
    std::vector<float> values(n);
    for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i) - 500.5f;
    const auto tensor = [&] {
      Tensor on_device{.data = device->allocate(n * sizeof(float)), .dtype = DType::F32, .shape = {n}};
      return on_device;
    };
    const Tensor a = tensor(), b = tensor();
    const auto check_equal = [&](const Tensor& result) {
      std::vector<float> host(n);
      device->copy_to_host(host.data(), result.data, result.bytes());
      CHECK(host == values);
    };
    device->copy_from_host(a.data, values.data(), a.bytes());
    comm->wait(comm->all_reduce(a, Reduction::Sum));
    check_equal(a);
    comm->wait(comm->reduce_scatter(b, a, Reduction::Sum));
    check_equal(b);
    device->zero(b);
    comm->wait(comm->all_gather(b, a));
    check_equal(b);
    device->zero(b);
    comm->wait(comm->all_to_all(b, a));
    check_equal(b);
    comm->wait(comm->broadcast(b, 0));
    check_equal(b);
    // Runs beside the device and is ordered with it by wait() alone.
    for (int i = 0; i < 1000; ++i) comm->wait(comm->all_reduce(a, Reduction::Sum));
    check_equal(a);
    comm->barrier();
    control.check();
    CHECK(comm->traffic().sent() == 0);
    device->free(a.data);
    device->free(b.data);
  }
  control.finish();
}
