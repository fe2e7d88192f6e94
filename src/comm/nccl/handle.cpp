#include "comm/nccl/handle.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"

namespace octet {
namespace {

bool is_error(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }

constexpr double finalize_seconds = 30;

}  // namespace

NcclHandle::NcclHandle(const Nccl& nccl, ControlPlane& control, double seconds)
    : nccl_(nccl), control_(control) {
  ncclUniqueId id{};
  if (control.rank() == 0)
    if (const ncclResult_t result = nccl.ncclGetUniqueId(&id); is_error(result))
      fail("ncclGetUniqueId", result);
  const std::string bytes =
      control.broadcast("NCCL unique id", std::string(id.internal, sizeof id.internal), 0);
  std::memcpy(id.internal, bytes.data(), std::min(bytes.size(), sizeof id.internal));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t result =
      nccl.ncclCommInitRankConfig(&comm_, control.ranks(), id, control.rank(), &config);
  try {
    if (is_error(result)) fail("ncclCommInitRankConfig", result);
    settle("connecting the ranks", seconds);
  } catch (...) {
    abort();
    throw;
  }
}

NcclHandle::~NcclHandle() {
  if (comm_ == nullptr) return;
  if (!control_.failure()) {
    ncclResult_t result = nccl_.ncclCommFinalize(comm_);
    const double deadline = monotonic_seconds() + finalize_seconds;
    while (result == ncclInProgress && monotonic_seconds() < deadline && !control_.failure()) {
      usleep(1000);
      result = state();
    }
    if (result == ncclSuccess) {
      nccl_.ncclCommDestroy(comm_);
      return;
    }
    log_warning("NCCL did not end in order: {}", nccl_.ncclGetErrorString(result));
  }
  abort();
}

ncclResult_t NcclHandle::state() {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return ncclInternalError;
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = nccl_.ncclCommGetAsyncError(comm_, &state);
  return is_error(asked) ? asked : state;
}

void NcclHandle::settle(const std::string& what, double seconds) {
  // Usually NCCL's own thread is done within microseconds; the first operation connects ranks and takes its
  // time.
  ncclResult_t now = state();
  for (int i = 0; i < 100 && now == ncclInProgress; ++i) {
    std::this_thread::yield();
    now = state();
  }
  if (now == ncclInProgress) {
    const ControlPlane::Waiting waiting(control_, "NCCL, " + what);
    const double deadline = monotonic_seconds() + seconds;
    while ((now = state()) == ncclInProgress) {
      control_.check();
      if (monotonic_seconds() >= deadline) {
        const std::string text = fmt::format("NCCL, {}: not done after {}", what, human_duration(seconds));
        control_.abort(text, ExitCode::Hardware);
        throw Error(ExitCode::Hardware, text,
                    "NCCL_DEBUG=INFO shows what it waits for; NCCL_SOCKET_IFNAME chooses its network");
      }
      usleep(100);
    }
  }
  if (is_error(now)) fail(what, now);
}

void NcclHandle::issue(const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& call) {
  ncclResult_t result = ncclSuccess;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) result = call(comm_);
  }
  control_.check();  // aborted: that is why
  if (is_error(result)) fail(what, result);
  if (result == ncclInProgress) settle(what, std::numeric_limits<double>::infinity());
}

std::optional<ncclResult_t> NcclHandle::asynchronous_error() {
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return std::nullopt;
  }
  const ncclResult_t now = state();
  return is_error(now) ? std::optional(now) : std::nullopt;
}

void NcclHandle::fail(const std::string& what, ncclResult_t error) {
  std::string text = fmt::format("NCCL, {}: {}", what, nccl_.ncclGetErrorString(error));
  // It takes the communicator for historical reasons only.
  if (const char* last = nccl_.ncclGetLastError(nullptr); last != nullptr && *last != '\0')
    text += fmt::format(" ({})", escape_control(last));
  // A peer that dies breaks NCCL's connections a moment before the control plane knows who it was.
  if (error == ncclRemoteError || error == ncclSystemError || error == ncclInternalError) {
    pollfd failed{control_.failure_fd(), POLLIN, 0};
    poll(&failed, 1, static_cast<int>(control_.timing().deadline_seconds * 1000 / 10));
    control_.check();
  }
  control_.abort(text, ExitCode::Hardware);
  throw Error(ExitCode::Hardware, text,
              "NCCL_DEBUG=WARN says more; octet doctor checks the GPUs and their driver");
}

void NcclHandle::abort() noexcept {
  const std::lock_guard lock(mutex_);
  if (comm_ != nullptr) nccl_.ncclCommAbort(comm_);
  comm_ = nullptr;
}

}  // namespace octet
