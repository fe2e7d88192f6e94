// Two "hosts" on this machine: network namespaces with addresses of their own and a cable between them.
#pragma once
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "catch.h"

namespace octet::testing {

struct Output {
  int code = -1;
  std::string text;  // standard output and error together
};
inline Output output_of(const std::string& command) {
  Output output;
  FILE* pipe = ::popen(("{ " + command + "\n} 2>&1").c_str(), "r");
  REQUIRE(pipe);
  std::array<char, 4096> buffer;
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    output.text.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

inline bool installed(const char* program) {
  return output_of(fmt::format("command -v {}", program)).code == 0;
}

class TwoHosts {
 public:
  // Nothing where network namespaces are not allowed, or iproute2 is not installed.
  static std::unique_ptr<TwoHosts> make() {
    std::unique_ptr<TwoHosts> hosts(new TwoHosts);
    return hosts->cable() ? std::move(hosts) : nullptr;
  }
  ~TwoHosts() {
    for (const int host : {0, 1}) output_of("ip netns del " + address(host));
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  // The namespace has its address for a name.
  std::string address(int host) const {
    return fmt::format("10.{}.{}.{}", 64 + id_ / 256 % 64, id_ % 256, host + 1);
  }
  std::string on(int host) const { return "ip netns exec " + address(host); }

 private:
  TwoHosts() = default;
  bool cable() const {
    std::string commands =
        fmt::format("ip netns add {} && ip netns add {} && ip link add oct{}a type veth peer name oct{}b",
                    address(0), address(1), id_, id_);
    for (const int host : {0, 1}) {
      const std::string end = fmt::format("oct{}{}", id_, host == 0 ? 'a' : 'b'), name = address(host);
      commands += fmt::format(
          " && ip link set {1} netns {0} && ip -n {0} addr add {0}/24 dev {1}"
          " && ip -n {0} link set {1} up && ip -n {0} link set lo up",
          name, end);
    }
    return output_of(commands).code == 0;
  }
  int id_ = static_cast<int>(::getpid());  // tests of other processes have cables of their own
};

// A stand-in for ssh, "AGENT host command": every host is this one, or the network namespace of that name.
class Agent {
 public:
  enum class Host { This, Namespace };
  explicit Agent(Host host) {
    REQUIRE(::mkdtemp(folder_) != nullptr);
    std::ofstream(path())
        << "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift; done\nhost=$1\nshift\nexec "
        << (host == Host::Namespace ? "ip netns exec $host " : "") << "sh -c \"$*\"\n";
    std::filesystem::permissions(path(), std::filesystem::perms::owner_all);
  }
  ~Agent() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  std::string path() const { return std::string(folder_) + "/agent"; }

 private:
  char folder_[32] = "/tmp/octet-agent-XXXXXX";
};

}  // namespace octet::testing
