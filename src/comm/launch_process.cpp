// What detection knows of the process it runs in.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "base/error.h"
#include "comm/launch.h"
#include "comm/launch_sources.h"
#include "comm/listener.h"
#include "comm/pmi.h"

namespace octet {
namespace {

std::optional<std::string> variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value ? std::optional<std::string>(value) : std::nullopt;
}

// A name by which other hosts know this one: Hydra's own, from its list of hosts, or the system's.
std::string name_of_this_host() {
  if (const auto name = variable("MPIR_CVAR_CH3_INTERFACE_HOSTNAME"); name && !name->empty()) return *name;
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

Meeting meet_by_pmi(const MeetingRequest& request) {
  std::optional<Listener> listener;
  PmiRequest question{.socket = request.socket, .offer = {}, .exchange = request.place};
  if (request.place && request.rank == 0) {
    listener.emplace(request.one_host ? Listener::Reach::Loopback : Listener::Reach::Everywhere);
    const std::string host = request.one_host ? "127.0.0.1" : name_of_this_host();
    question.offer = fmt::format(fmt::runtime(host.find(':') == std::string::npos ? "{}:{}" : "[{}]:{}"),
                                 host, listener->port());
  }
  const PmiAnswer answer = ask_process_manager(question);
  Meeting meeting;
  meeting.job = answer.job;
  if (!request.place) return meeting;
  const MeetingPlace place = parse_place(answer.offered, "rank 0's place");
  meeting.host = place.host;
  meeting.port = place.port;
  if (listener) meeting.listener = listener->release();
  return meeting;
}

}  // namespace

Environment process_environment() { return {variable, meet_by_pmi}; }

}  // namespace octet
