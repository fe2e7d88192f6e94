#include "comm/rendezvous.h"

#include <fmt/format.h>

#include <atomic>

#include "ranks.h"

using namespace octet;

namespace {

RendezvousOptions options_of(const Launch& launch) { return quick_options(launch).rendezvous; }

std::string meet_as(const Launch& launch, const Agreement& agreement, const RendezvousOptions& options) {
  return fmt::format("met {}", meet(launch, agreement, options).peers.size());
}

// A connection to the rendezvous of one who is no rank.
class Intruder {
 public:
  explicit Intruder(int port) {
    std::string problem;
    for (const SocketAddress& address : resolve("127.0.0.1", port, problem)) {
      SocketAttempt attempt = begin_connect(address);
      socket_ = std::move(attempt.socket);
    }
    REQUIRE(socket_.open());
    pollfd polled{socket_.fd(), POLLOUT, 0};
    poll(&polled, 1, 10000);
  }
  void say(const std::string& bytes) { send_all(socket_, bytes, monotonic_seconds() + 5); }
  std::optional<Frame> hear() {
    while (true) {
      if (auto frame = parser_.next()) return frame;
      if (!more()) return std::nullopt;
    }
  }
  bool is_dropped() {
    while (more()) parser_.next();
    return closed_;
  }

 private:
  bool more() {
    pollfd polled{socket_.fd(), POLLIN, 0};
    if (poll(&polled, 1, 20000) <= 0) return false;
    char bytes[4096];
    const ssize_t got = recv(socket_.fd(), bytes, sizeof bytes, 0);
    closed_ = got <= 0;
    if (!closed_) parser_.add({bytes, static_cast<size_t>(got)});
    return !closed_;
  }
  Socket socket_;
  FrameParser parser_;
  bool closed_ = false;
};

Hello hello_of(int rank, int ranks) {
  Hello hello;
  hello.rank = static_cast<uint32_t>(rank);
  hello.ranks = static_cast<uint32_t>(ranks);
  hello.host = "intruder";
  hello.pid = 99;
  hello.nonce = std::string(16, 'n');
  return hello;
}

}  // namespace

TEST_CASE("strangers at the rendezvous are dropped and disturb nothing") {
  const std::vector<Launch> all = launches(2);
  std::atomic<bool> go{false};
  std::string host_result;
  std::thread host([&] {
    try {
      RendezvousOptions options = options_of(all[0]);
      options.stranger_seconds = 0.3;
      host_result = meet_as(all[0], {}, options);
    } catch (const std::exception& error) {
      host_result = error_text(error);
    }
  });
  const int port = all[0].port;
  Intruder browser(port), scanner(port), half_open(port), giant(port), other_job(port), other_secret(port),
      liar(port);
  browser.say("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  scanner.say(std::string(64, '\0'));
  giant.say("\xff\xff\xff\x7f\x02");
  const auto challenge_of = [](Intruder& intruder) {
    const auto frame = intruder.hear();
    REQUIRE(frame.has_value());
    const auto challenge = decode_challenge(*frame);
    REQUIRE(challenge.has_value());
    return *challenge;
  };
  other_job.say(encode_proven(hello_of(1, 2), job_key("another", ""), challenge_of(other_job).nonce));
  other_secret.say(encode_proven(hello_of(1, 2), job_key("test", "guess"), challenge_of(other_secret).nonce));
  // A proof overheard on another connection is worth nothing on this one.
  challenge_of(liar);
  liar.say(encode_proven(hello_of(1, 2), job_key("test", ""), std::string(16, 'x')));
  CHECK(browser.is_dropped());
  CHECK(scanner.is_dropped());
  CHECK(giant.is_dropped());
  CHECK(other_job.is_dropped());
  CHECK(other_secret.is_dropped());
  CHECK(liar.is_dropped());
  CHECK(half_open.is_dropped());  // it said nothing for stranger_seconds
  std::string guest_result = meet_as(all[1], {}, options_of(all[1]));
  host.join();
  CHECK(guest_result == "met 2");
  CHECK(host_result == "met 2");
}

TEST_CASE("a connection that stays half open does not hold up the ranks") {
  const std::vector<Launch> all = launches(3);
  Intruder first(all[0].port), second(all[0].port);  // before rank 0 even looks
  const auto results =
      run_as_threads(all, [](const Launch& launch) { return meet_as(launch, {}, options_of(launch)); });
  CHECK(results == std::vector<std::string>(3, "met 3"));
}

TEST_CASE("at the deadline every rank that came names exactly those that did not") {
  const std::vector<Launch> all = launches(6);
  const std::vector<Launch> came{all[0], all[1], all[4]};
  const auto results = run_as_threads(came, [](const Launch& launch) {
    RendezvousOptions options = options_of(launch);
    options.seconds = 0.6;
    return meet_as(launch, {}, options);
  });
  for (const std::string& result : results) {
    CHECK_THAT(result, contains_text("exit 31: rendezvous at 127.0.0.1:") &&
                           contains_text(": ranks 2, 3, 5 missing after"));
    CHECK_THAT(result, !contains_text("ranks 1"));
  }
}

TEST_CASE("a rank that came and left again is missing, with its host") {
  const std::vector<Launch> all = launches(3);
  {
    // Rank 1 connects and is gone before rank 2 comes.
    std::thread host;
    std::string host_result;
    host = std::thread([&] {
      try {
        RendezvousOptions options = options_of(all[0]);
        options.seconds = 0.8;
        host_result = meet_as(all[0], {}, options);
      } catch (const std::exception& error) {
        host_result = error_text(error);
      }
    });
    {
      Intruder rank_1(all[0].port);
      const auto frame = rank_1.hear();
      REQUIRE(frame.has_value());
      rank_1.say(encode_proven(hello_of(1, 3), job_key("test", ""), decode_challenge(*frame)->nonce));
      const auto answer = rank_1.hear();
      REQUIRE(answer.has_value());
      CHECK(answer->kind == MessageKind::Missing);
      CHECK(decode_missing(*answer)->ranks == "rank 2");
    }
    host.join();
    CHECK_THAT(host_result,
               contains_text("ranks 1, 2, rank 1 (host intruder, pid 99) has left missing after"));
  }
}

TEST_CASE("without rank 0 the others say where they looked and what answered") {
  int port = 0;
  close(listening_socket(port));  // nobody listens there now
  Launch launch{.rank = 3, .ranks = 4, .port = port, .job = "test"};
  RendezvousOptions options = options_of(launch);
  options.seconds = 0.3;
  std::string text;
  try {
    meet(launch, {}, options);
  } catch (const std::exception& error) {
    text = error_text(error);
  }
  CHECK_THAT(text, contains_text(fmt::format("exit 31: rank 3 did not find rank 0 at 127.0.0.1:{}", port)) &&
                       contains_text("Connection refused"));
  launch.host = "no-such-host.invalid";
  text.clear();
  try {
    meet(launch, {}, options);
  } catch (const std::exception& error) {
    text = error_text(error);
  }
  CHECK_THAT(text, contains_text("the name no-such-host.invalid has no address"));
}

TEST_CASE("a rank of another job learns that the rendezvous is not its own") {
  std::vector<Launch> all = launches(2);
  all[1].job = "another";
  const auto results = run_as_threads(all, [](const Launch& launch) {
    RendezvousOptions options = options_of(launch);
    options.seconds = 0.5;
    return meet_as(launch, {}, options);
  });
  CHECK_THAT(results[0], contains_text("rank 1 missing after"));
  CHECK_THAT(results[1], contains_text("belongs to another job, or to another secret"));
}

TEST_CASE("ranks that differ in what must be equal all name the item, the ranks and the values") {
  const auto run = [](int odd) {
    return run_as_threads(4, [&](const Launch& launch) {
      Agreement agreement;
      agreement.equal = {{"build", "0.1.0 abc"}, {"configuration", launch.rank == odd ? "ffff" : "9f31"}};
      return meet_as(launch, agreement, options_of(launch));
    });
  };
  CHECK(run(-1) == std::vector<std::string>(4, "met 4"));
  for (const std::string& result : run(2))
    CHECK_THAT(result,
               contains_text("exit 2: the ranks do not have the same configuration: ranks 0, 1, 3 have 9f31, "
                             "rank 2 (host host2, pid ") &&
                   contains_text("has ffff"));
  for (const std::string& result : run(0))
    CHECK_THAT(result, contains_text("ranks 1-3 have 9f31, rank 0 (host host0"));
}

TEST_CASE("two ranks of one machine with one device are refused, the same name on two machines is not") {
  const auto results = run_as_threads(3, [](const Launch& launch) {
    Agreement agreement;
    agreement.unique = {{"device", launch.rank == 0 ? "GPU-1" : "GPU-2"}};
    return meet_as(launch, agreement, options_of(launch));
  });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("exit 2: two ranks have the same device GPU-2: rank 1 (host host1") &&
                           contains_text("and rank 2 (host host2"));
  const std::vector<Agreement> same(2, Agreement{.equal = {}, .unique = {{"device", "MIG 0"}}});
  std::vector<Peer> peers{{.rank = 0, .host = "a", .pid = 1, .machine = "A", .network = ""},
                          {.rank = 1, .host = "b", .pid = 2, .machine = "B", .network = ""}};
  CHECK(disagreement(peers, same).empty());
  peers[1].machine = "A";
  CHECK_THAT(disagreement(peers, same), contains_text("two ranks have the same device MIG 0"));
}

TEST_CASE("a rank that is there twice is named with both hosts and processes") {
  std::vector<Launch> all = launches(4);
  all[3].rank = 1;
  std::atomic<int> number{0};
  const auto results = run_as_threads(all, [&](const Launch& launch) {
    RendezvousOptions options = options_of(launch);
    options.host = fmt::format("machine{}", number++);
    return meet_as(launch, {}, options);
  });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("exit 2: rank 1 is there twice: rank 1 (host machine") &&
                           contains_text(" and rank 1 (host machine"));
}

TEST_CASE("ranks that were started with different numbers of ranks are told both") {
  std::vector<Launch> all = launches(2);
  all[1].ranks = 4;
  const auto results =
      run_as_threads(all, [](const Launch& launch) { return meet_as(launch, {}, options_of(launch)); });
  for (const std::string& result : results)
    CHECK_THAT(result, contains_text("rank 1 (host host1") &&
                           contains_text("was started as one of 4 ranks, rank 0 (host host0") &&
                           contains_text("as one of 2 ranks"));
}

TEST_CASE("a rank of another protocol version is refused by name") {
  const std::vector<Launch> all = launches(2);
  std::string host_result;
  std::thread host([&] {
    try {
      host_result = meet_as(all[0], {}, options_of(all[0]));
    } catch (const std::exception& error) {
      host_result = error_text(error);
    }
  });
  Intruder future(all[0].port);
  const auto frame = future.hear();
  REQUIRE(frame.has_value());
  Hello hello = hello_of(1, 2);
  hello.version = protocol_version + 1;
  future.say(encode_proven(hello, job_key("test", ""), decode_challenge(*frame)->nonce));
  const auto answer = future.hear();
  host.join();
  REQUIRE(answer.has_value());
  REQUIRE(answer->kind == MessageKind::Refused);
  const std::string expected = fmt::format(
      "rank 1 (host intruder, pid 99) speaks version {} of the control protocol", protocol_version + 1);
  CHECK_THAT(decode_refused(*answer)->what, contains_text(expected));
  CHECK_THAT(host_result, contains_text(expected));
}

TEST_CASE("ranks meet by name, by IPv4 and by IPv6, where rank 0 listens by itself") {
  for (const char* host : {"localhost", "127.0.0.1", "::1"}) {
    int port = 0;
    close(listening_socket(port));
    std::string problem;
    bool usable = false;
    for (const SocketAddress& address : resolve(host, 0, problem))
      usable = usable || listen_at(address).socket.open();
    if (!usable) {
      WARN("skipped: this machine has no " << host);
      continue;
    }
    std::vector<Launch> all(3, Launch{.ranks = 3, .host = host, .port = port, .job = "test"});
    for (int r = 0; r < 3; ++r) all[static_cast<size_t>(r)].rank = r;
    CHECK(run_as_threads(all, [](const Launch& launch) { return meet_as(launch, {}, options_of(launch)); }) ==
          std::vector<std::string>(3, "met 3"));
  }
}

TEST_CASE("lists of ranks are short and exact") {
  const auto text = [](std::vector<int> ranks) { return rank_list(ranks); };
  CHECK(text({3}) == "rank 3");
  CHECK(text({3, 4}) == "ranks 3, 4");
  CHECK(text({0, 1, 2, 5, 7, 8, 9}) == "ranks 0-2, 5, 7-9");
}
