#include "comm/pmi.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <string_view>
#include <system_error>

#include "base/clock.h"
#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

constexpr const char* place_key = "octet-rendezvous";
constexpr size_t longest_line = 4096;

Error lost(const std::string& why) {
  return {
      ExitCode::Usage, fmt::format("the process manager (PMI_FD) {}", why),
      "it answers once per start: run octet train once in each rank, or set OCTET_RENDEZVOUS=host:port and "
      "OCTET_JOB to a name for this start"};
}

class Conversation {
 public:
  Conversation(int socket, double timeout) : socket_(socket), timeout_(timeout) {}

  // Sends a line and returns the value of `wanted` in the answer, which has to be the command `answer`.
  std::string ask(const std::string& question, const std::string& answer, const std::string& wanted) {
    send(question + "\n");
    const std::string line = receive();
    if (value_of(line, "cmd") != answer) throw lost("answered " + escape_control(line.substr(0, 100)));
    if (const std::string code = value_of(line, "rc"); !code.empty() && code != "0")
      throw lost("refused: " + escape_control(line.substr(0, 100)));
    return wanted.empty() ? "" : value_of(line, wanted);
  }

 private:
  static std::string value_of(std::string_view line, std::string_view key) {
    while (!line.empty()) {
      const size_t space = line.find(' ');
      const std::string_view word = line.substr(0, space);
      if (word.size() > key.size() && word.substr(0, key.size()) == key && word[key.size()] == '=')
        return std::string(word.substr(key.size() + 1));
      line = space == std::string_view::npos ? std::string_view() : line.substr(space + 1);
    }
    return {};
  }

  void send(std::string_view rest) {
    while (!rest.empty()) {
      const ssize_t n = ::send(socket_, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw lost("cannot be reached: " + std::generic_category().message(errno));
      rest.remove_prefix(static_cast<size_t>(n));
    }
  }

  std::string receive() {
    const double deadline = monotonic_seconds() + timeout_;
    std::string line;
    for (;;) {
      const double left = deadline - monotonic_seconds();
      if (left <= 0)
        throw lost(fmt::format("has not answered for {:.0f} s: does every rank run octet train?", timeout_));
      pollfd ready{socket_, POLLIN, 0};
      const int n = ::poll(&ready, 1, static_cast<int>(left * 1000) + 1);
      if (n == 0 || (n < 0 && errno == EINTR)) continue;
      char c = 0;  // lines are short and few; what follows one belongs to whoever asks next
      const ssize_t got = ::recv(socket_, &c, 1, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw lost("cannot be reached: " + std::generic_category().message(errno));
      if (got == 0) throw lost("has hung up");
      if (c == '\n') return line;
      line += c;
      if (line.size() > longest_line) throw lost("does not speak PMI-1");
    }
  }

  int socket_;
  double timeout_;
};

}  // namespace

PmiAnswer ask_process_manager(const PmiRequest& request) {
  Conversation manager(request.socket, request.timeout_seconds);
  PmiAnswer answer;
  manager.ask("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init", "");
  manager.ask("cmd=get_maxes", "maxes", "");
  answer.job = manager.ask("cmd=get_my_kvsname", "my_kvsname", "kvsname");
  if (answer.job.empty()) throw lost("does not name the job");
  if (request.exchange) {
    if (request.offer)
      manager.ask(fmt::format("cmd=put kvsname={} key={} value={}", answer.job, place_key, *request.offer),
                  "put_result", "");
    manager.ask("cmd=barrier_in", "barrier_out", "");
    answer.offered =
        manager.ask(fmt::format("cmd=get kvsname={} key={}", answer.job, place_key), "get_result", "value");
    if (answer.offered.empty()) throw lost("does not know where rank 0 listens");
  }
  manager.ask("cmd=finalize", "finalize_ack", "");
  return answer;
}

}  // namespace octet
