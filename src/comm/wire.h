// The control plane's messages as bytes.
//
// A message is a frame: u32 length of what follows, u8 kind, fields. Numbers are little-endian; a text or
// blob is u32 length and bytes; a list is u32 count and entries. Nothing is allocated by a claimed length: a
// frame longer than the limit is refused at its head, and a field longer than its frame makes it malformed.
//
//   who speaks            messages
//   rank 0 to a stranger  Challenge
//   a stranger to rank 0  Hello; dropped when it is anything else or its proof is wrong
//   rank 0, meanwhile     Missing (every second), Refused
//   rank 0, all are here  Welcome
//   both, from then on    Status (heartbeat), Contribution / Collected, Abort, Suspect, Failed, Goodbye,
//   Farewell
//
// A hello begins with its proof, an HMAC by the job's key over the challenge's nonce and all fields after it.
// Challenge, and Hello up to its pid, are the same in every version, so that two versions can name each
// other.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/agreement.h"

namespace octet {

constexpr uint32_t protocol_version = 1;

enum class MessageKind : uint8_t {
  Challenge = 1,
  Hello,
  Missing,
  Refused,
  Welcome,
  Status,
  Contribution,
  Collected,
  Abort,
  Suspect,
  Failed,
  Goodbye,
  Farewell,
};

struct Challenge {
  uint32_t version = protocol_version;
  std::string nonce;  // 16 bytes
};

struct Hello {
  uint32_t version = protocol_version;
  uint32_t rank = 0, ranks = 0;
  std::string host;
  int64_t pid = 0;
  // Of this version:
  std::string machine, network;
  std::string nonce;  // 16 bytes, the hello's own challenge
  Agreement agreement;
};

struct Missing {
  std::string ranks;  // "ranks 5, 7"
};

struct Refused {
  std::string what, hint;
  uint8_t exit_code = 0;
};

// The times of rank 0 rule.
struct ControlTiming {
  double heartbeat_seconds = 1;
  double deadline_seconds = 30;  // a peer that was silent for so long is lost
  double stall_seconds =
      300;  // a rank others wait for, and that makes no progress for so long, hangs; 0: never
};

struct Welcome {
  std::string proof;  // 32 bytes: HMAC over the hello's nonce
  ControlTiming timing;
  std::vector<Peer> peers;
};

// What a rank does.
struct RankStatus {
  int64_t step = 0;
  std::string phase = "startup";
  uint64_t progress = 0;  // rises whenever the rank gets on
  std::string waits_in;   // the operation it waits in for others, or ""
  bool operator==(const RankStatus&) const = default;
};

enum class CollectKind : uint8_t { All, Root, Requests };

// One rank's part of a small collective of the control plane; those of equal name belong together.
struct Contribution {
  CollectKind kind = CollectKind::All;
  uint32_t root = 0;
  std::string name, value;
};
struct Collected {
  std::string name;
  std::vector<std::string> values;  // All: of every rank; else one
};

struct Abort {
  std::string reason;
};
struct Suspect {
  uint32_t rank = 0;
  std::string reason;
};

// Why a run cannot go on.
struct RunFailure {
  Peer peer;          // who
  RankStatus status;  // the last that was known of it
  std::string reason;
};
// "rank 2 (host b, pid 77) was lost at step 37, phase save: its connection closed without a goodbye"
std::string text_of(const RunFailure& failure);

std::string encode(const Challenge&);
std::string encode(const Missing&);
std::string encode(const Refused&);
std::string encode(const Welcome&);
std::string encode(const RankStatus&);
std::string encode(const Contribution&);
std::string encode(const Collected&);
std::string encode(const Abort&);
std::string encode(const Suspect&);
std::string encode(const RunFailure&);
std::string encode_goodbye();
std::string encode_farewell();

struct Frame {
  MessageKind kind{};
  std::string fields;
};

// A hello with its proof, and whether a hello's proof is right, of whatever version it is.
std::string encode_proven(Hello hello, const std::string& key, const std::string& challenge_nonce);
bool is_proven(const Frame& hello, const std::string& key, const std::string& challenge_nonce);
// The proof in a welcome.
std::string welcome_proof(const std::string& key, const std::string& hello_nonce);

// nullopt: malformed.
std::optional<Challenge> decode_challenge(const Frame&);
std::optional<Hello> decode_hello(const Frame&);  // of another version: without what is of this version
std::optional<Missing> decode_missing(const Frame&);
std::optional<Refused> decode_refused(const Frame&);
std::optional<Welcome> decode_welcome(const Frame&);
std::optional<RankStatus> decode_status(const Frame&);
std::optional<Contribution> decode_contribution(const Frame&);
std::optional<Collected> decode_collected(const Frame&);
std::optional<Abort> decode_abort(const Frame&);
std::optional<Suspect> decode_suspect(const Frame&);
std::optional<RunFailure> decode_failure(const Frame&);

// Frames out of a stream of bytes.
class FrameParser {
 public:
  static constexpr size_t stranger_limit = 1 << 16, member_limit = 256 << 20;
  FrameParser() = default;
  explicit FrameParser(size_t limit) : limit_(limit) {}
  void set_limit(size_t limit) { limit_ = limit; }
  void add(std::string_view bytes) { buffer_ += bytes; }
  std::optional<Frame> next();
  bool malformed() const { return malformed_; }  // nothing comes any more

 private:
  size_t limit_ = stranger_limit, at_ = 0;
  std::string buffer_;
  bool malformed_ = false;
};

}  // namespace octet
