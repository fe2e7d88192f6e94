#include "comm/pmi.h"

#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "catch.h"
#include "comm/listener.h"
#include "comm/variables.h"

using namespace octet;
using namespace octet::testing;

namespace {

// A process manager that answers each line it gets with the next of its own; "" hangs up.
class Manager {
 public:
  explicit Manager(std::vector<std::string> answers) : answers_(std::move(answers)) {
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) == 0);
    thread_ = std::thread([this] { serve(); });
  }
  ~Manager() {
    ::shutdown(ends_[0], SHUT_RDWR);
    thread_.join();
    for (const int end : ends_) ::close(end);
  }
  int socket() const { return ends_[0]; }
  std::string heard() {
    ::shutdown(ends_[0], SHUT_WR);
    thread_.join();
    thread_ = std::thread([] {});
    return heard_;
  }

 private:
  void serve() {
    size_t next = 0;
    char c = 0;
    while (::recv(ends_[1], &c, 1, 0) == 1) {
      heard_ += c;
      if (c != '\n') continue;
      if (next == answers_.size() || answers_[next].empty()) break;
      const std::string& line = answers_[next++];
      if (::send(ends_[1], line.data(), line.size(), MSG_NOSIGNAL) < 0) break;
    }
    ::shutdown(ends_[1], SHUT_RDWR);
  }

  std::vector<std::string> answers_;
  std::string heard_;
  int ends_[2] = {};
  std::thread thread_;
};

const std::string greeting = "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n",
                  limits = "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024\n",
                  name = "cmd=my_kvsname kvsname=kvs_1681_0_1450246282_vm\n",
                  stored = "cmd=put_result rc=0 msg=success\n", all_here = "cmd=barrier_out\n",
                  fetched = "cmd=get_result rc=0 msg=success value=node0:4711\n", bye = "cmd=finalize_ack\n";

}  // namespace

TEST_CASE("rank 0 leaves its place with the process manager and the others fetch it") {
  Manager first({greeting, limits, name, stored, all_here, fetched, bye});
  const PmiAnswer own = ask_process_manager({.socket = first.socket(), .offer = "node0:4711"});
  CHECK(own.job == "kvs_1681_0_1450246282_vm");
  CHECK(first.heard() ==
        "cmd=init pmi_version=1 pmi_subversion=1\ncmd=get_maxes\ncmd=get_my_kvsname\n"
        "cmd=put kvsname=kvs_1681_0_1450246282_vm key=octet-rendezvous value=node0:4711\n"
        "cmd=barrier_in\ncmd=get kvsname=kvs_1681_0_1450246282_vm key=octet-rendezvous\ncmd=finalize\n");
  Manager second({greeting, limits, name, all_here, fetched, bye});
  CHECK(ask_process_manager({.socket = second.socket(), .offer = {}}).offered == "node0:4711");
  CHECK(second.heard().find("cmd=put") == std::string::npos);
  Manager third({greeting, limits, name, bye});
  CHECK(ask_process_manager({.socket = third.socket(), .offer = {}, .exchange = false}).offered.empty());
}

TEST_CASE(
    "a process manager that hangs up, refuses, is silent or speaks otherwise is an error with a remedy") {
  const auto refusal = [](std::vector<std::string> answers, double timeout = 60) {
    Manager manager(std::move(answers));
    return error_of([&] {
      ask_process_manager(
          {.socket = manager.socket(), .offer = {}, .exchange = true, .timeout_seconds = timeout});
    });
  };
  CHECK_THAT(refusal({""}), contains_text("2: the process manager (PMI_FD) has hung up"));
  CHECK_THAT(refusal({greeting, ""}), contains_text("OCTET_RENDEZVOUS=host:port"));
  CHECK_THAT(refusal({"cmd=response_to_init rc=-1\n"}), contains_text("refused: cmd=response_to_init rc=-1"));
  CHECK_THAT(refusal({"    80cmd=fullinit-response;\n"}),
             contains_text("answered     80cmd=fullinit"));  // PMI-2
  CHECK_THAT(refusal({std::string(5000, 'x')}), contains_text("does not speak PMI-1"));
  CHECK_THAT(refusal({greeting, limits, "cmd=my_kvsname\n"}), contains_text("does not name the job"));
  CHECK_THAT(
      refusal({greeting, limits, name, all_here, "cmd=get_result rc=-1 msg=not_found value=unknown\n"}),
      contains_text("refused"));
  CHECK_THAT(refusal({greeting, limits, "cmd"}, 0.05), contains_text("has not answered"));
  CHECK_THAT(error_of([] { ask_process_manager({.socket = 1 << 20, .offer = {}}); }),
             contains_text("cannot be reached"));
}

TEST_CASE("a listener has a port of its own that takes connections before anybody accepts them") {
  const Listener a(Listener::Reach::Loopback), b(Listener::Reach::Everywhere);
  CHECK(a.port() > 0);
  CHECK(a.port() != b.port());
  int listening = 0;
  socklen_t bytes = sizeof listening;
  CHECK(::getsockopt(a.socket(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) == 0);
  CHECK(listening == 1);
}
