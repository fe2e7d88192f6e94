#include "comm/wire.h"

#include <vector>

#include "catch.h"

using namespace octet;

namespace {

Frame parsed(const std::string& bytes) {
  FrameParser parser;
  parser.add(bytes);
  const auto frame = parser.next();
  REQUIRE(frame.has_value());
  CHECK_FALSE(parser.next().has_value());
  return *frame;
}

}  // namespace

TEST_CASE("every message survives the wire, in one piece or byte by byte") {
  const RankStatus status{
      .step = -3, .phase = "save", .progress = uint64_t{1} << 40, .waits_in = "all_gather"};
  const Peer peer{.rank = 7, .host = "b", .pid = 4711, .machine = "m", .network = "n"};
  FrameParser parser;
  std::string stream = encode(status) + encode(Collected{"x", {"", "second"}}) +
                       encode(RunFailure{peer, status, "was lost"}) + encode_goodbye();
  std::vector<Frame> frames;
  for (const char byte : stream) {
    parser.add({&byte, 1});
    while (auto frame = parser.next()) frames.push_back(*frame);
  }
  REQUIRE(frames.size() == 4);
  CHECK(decode_status(frames[0]) == status);
  CHECK(decode_collected(frames[1])->values == std::vector<std::string>{"", "second"});
  CHECK(decode_failure(frames[2])->peer == peer);
  CHECK(decode_failure(frames[2])->status == status);
  CHECK(frames[3].kind == MessageKind::Goodbye);

  Welcome welcome{.proof = std::string(32, 'p'), .timing = {}, .peers = {peer, peer}};
  welcome.timing.deadline_seconds = 2.5;
  const auto back = decode_welcome(parsed(encode(welcome)));
  CHECK(back->peers == welcome.peers);
  CHECK(back->timing.deadline_seconds == 2.5);
}

TEST_CASE("a hello is believed with its own challenge, its own key and unchanged only") {
  Hello hello;
  hello.rank = 3;
  hello.ranks = 4;
  hello.host = "b";
  hello.nonce = std::string(16, 'n');
  hello.agreement.equal = {{"build", "1"}, {"configuration", "2"}};
  hello.agreement.unique = {{"device", "GPU-1"}};
  const std::string challenge(16, 'c');
  std::string bytes = encode_proven(hello, "key", challenge);
  const Frame frame = parsed(bytes);
  CHECK(is_proven(frame, "key", challenge));
  CHECK_FALSE(is_proven(frame, "other", challenge));
  CHECK_FALSE(is_proven(frame, "key", std::string(16, 'd')));
  const auto back = decode_hello(frame);
  REQUIRE(back.has_value());
  CHECK(back->rank == 3);
  CHECK(back->agreement.equal == hello.agreement.equal);
  CHECK(back->agreement.unique == hello.agreement.unique);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  CHECK_FALSE(is_proven(parsed(bytes), "key", challenge));
}

TEST_CASE("claimed lengths beyond the limit, the frame or the list are refused before anything is taken") {
  FrameParser parser;
  parser.add(std::string("\xff\xff\xff\x7f\x06", 5));
  CHECK_FALSE(parser.next().has_value());
  CHECK(parser.malformed());
  FrameParser unknown_kind;
  unknown_kind.add(std::string("\x01\x00\x00\x00\x63", 5));
  CHECK_FALSE(unknown_kind.next().has_value());
  CHECK(unknown_kind.malformed());

  Frame frame = parsed(encode(Collected{"x", {"a"}}));
  CHECK(decode_collected(frame).has_value());
  frame.fields[5] = '\x7f';  // the count of values
  CHECK_FALSE(decode_collected(frame).has_value());
  Frame longer = parsed(encode(Abort{"reason"}));
  longer.fields += "x";
  CHECK_FALSE(decode_abort(longer).has_value());
  longer.fields.resize(3);
  CHECK_FALSE(decode_abort(longer).has_value());
}
