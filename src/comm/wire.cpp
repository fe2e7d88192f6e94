#include "comm/wire.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

#include "base/text.h"
#include "comm/authentication.h"

namespace octet {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers travel as they lie in memory");

constexpr size_t nonce_bytes = 16, proof_bytes = 32;
constexpr char magic[] = "octet rendezvous";

class FieldWriter {
 public:
  explicit FieldWriter(MessageKind kind) {
    number(uint32_t{0});
    number(static_cast<uint8_t>(kind));
  }
  template <class T>
  FieldWriter& number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  FieldWriter& text(std::string_view value) {
    number(static_cast<uint32_t>(value.size()));
    return raw(value);
  }
  FieldWriter& raw(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  FieldWriter& named(const std::vector<NamedValue>& list) {
    number(static_cast<uint32_t>(list.size()));
    for (const NamedValue& item : list) text(item.name).text(item.value);
    return *this;
  }
  FieldWriter& peer(const Peer& peer) {
    return number(int32_t{peer.rank}).text(peer.host).number(peer.pid).text(peer.machine).text(peer.network);
  }
  FieldWriter& status(const RankStatus& status) {
    return number(status.step).text(status.phase).number(status.progress).text(status.waits_in);
  }
  std::string frame() {
    const auto length = static_cast<uint32_t>(bytes_.size() - sizeof(uint32_t));
    memcpy(bytes_.data(), &length, sizeof length);
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
};

// Reads in order; once something does not fit, everything after it is zero or empty.
class FieldReader {
 public:
  explicit FieldReader(std::string_view bytes) : left_(bytes) {}
  template <class T>
  T number() {
    T value{};
    const std::string_view from = raw(sizeof value);
    if (good_) memcpy(&value, from.data(), sizeof value);
    return value;
  }
  std::string_view raw(size_t count) {
    good_ = good_ && count <= left_.size();
    if (!good_) return {};
    const std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }
  std::string text() { return std::string(raw(number<uint32_t>())); }
  // How many entries follow, each of at least `least` bytes.
  uint32_t count(size_t least) {
    const auto entries = number<uint32_t>();
    good_ = good_ && entries <= left_.size() / least;
    return good_ ? entries : 0;
  }
  std::vector<NamedValue> named() {
    std::vector<NamedValue> list(count(2 * sizeof(uint32_t)));
    for (NamedValue& item : list) {
      item.name = text();
      item.value = text();
    }
    return list;
  }
  Peer peer() {
    Peer peer;
    peer.rank = number<int32_t>();
    peer.host = text();
    peer.pid = number<int64_t>();
    peer.machine = text();
    peer.network = text();
    return peer;
  }
  RankStatus status() {
    RankStatus status;
    status.step = number<int64_t>();
    status.phase = text();
    status.progress = number<uint64_t>();
    status.waits_in = text();
    return status;
  }
  bool good() const { return good_; }
  bool complete() const { return good_ && left_.empty(); }

 private:
  std::string_view left_;
  bool good_ = true;
};

template <class T>
std::optional<T> if_complete(const FieldReader& fields, T message) {
  if (!fields.complete()) return std::nullopt;
  return message;
}

}  // namespace

std::string text_of(const RunFailure& failure) {
  return fmt::format("{} {} at step {}, phase {}", name_of(failure.peer), escape_control(failure.reason),
                     failure.status.step, escape_control(failure.status.phase));
}

std::string encode(const Challenge& m) {
  return FieldWriter(MessageKind::Challenge).raw(magic).number(m.version).raw(m.nonce).frame();
}
std::string encode_proven(Hello m, const std::string& key, const std::string& challenge_nonce) {
  FieldWriter fields(MessageKind::Hello);
  fields.raw(std::string(proof_bytes, '\0'));
  fields.number(m.version).number(m.rank).number(m.ranks).text(m.host).number(m.pid);
  fields.text(m.machine).text(m.network).raw(m.nonce);
  fields.named(m.agreement.equal).named(m.agreement.unique);
  std::string frame = fields.frame();
  constexpr size_t proof_at = sizeof(uint32_t) + 1;
  frame.replace(proof_at, proof_bytes,
                hmac_sha256(key, "hello" + challenge_nonce + frame.substr(proof_at + proof_bytes)));
  return frame;
}
bool is_proven(const Frame& hello, const std::string& key, const std::string& challenge_nonce) {
  if (hello.fields.size() < proof_bytes) return false;
  return equal_in_constant_time(
      hello.fields.substr(0, proof_bytes),
      hmac_sha256(key, "hello" + challenge_nonce + hello.fields.substr(proof_bytes)));
}
std::string welcome_proof(const std::string& key, const std::string& hello_nonce) {
  return hmac_sha256(key, "welcome" + hello_nonce);
}
std::string encode(const Missing& m) { return FieldWriter(MessageKind::Missing).text(m.ranks).frame(); }
std::string encode(const Refused& m) {
  return FieldWriter(MessageKind::Refused).text(m.what).text(m.hint).number(m.exit_code).frame();
}
std::string encode(const Welcome& m) {
  FieldWriter fields(MessageKind::Welcome);
  fields.raw(m.proof).number(m.timing.heartbeat_seconds).number(m.timing.deadline_seconds);
  fields.number(m.timing.stall_seconds).number(static_cast<uint32_t>(m.peers.size()));
  for (const Peer& peer : m.peers) fields.peer(peer);
  return fields.frame();
}
std::string encode(const RankStatus& m) { return FieldWriter(MessageKind::Status).status(m).frame(); }
std::string encode(const Contribution& m) {
  return FieldWriter(MessageKind::Contribution)
      .number(static_cast<uint8_t>(m.kind))
      .number(m.root)
      .text(m.name)
      .text(m.value)
      .frame();
}
std::string encode(const Collected& m) {
  FieldWriter fields(MessageKind::Collected);
  fields.text(m.name).number(static_cast<uint32_t>(m.values.size()));
  for (const std::string& value : m.values) fields.text(value);
  return fields.frame();
}
std::string encode(const Abort& m) { return FieldWriter(MessageKind::Abort).text(m.reason).frame(); }
std::string encode(const Suspect& m) {
  return FieldWriter(MessageKind::Suspect).number(m.rank).text(m.reason).frame();
}
std::string encode(const RunFailure& m) {
  return FieldWriter(MessageKind::Failed).peer(m.peer).status(m.status).text(m.reason).frame();
}
std::string encode_goodbye() { return FieldWriter(MessageKind::Goodbye).frame(); }
std::string encode_farewell() { return FieldWriter(MessageKind::Farewell).frame(); }

std::optional<Challenge> decode_challenge(const Frame& frame) {
  FieldReader fields(frame.fields);
  Challenge m;
  const bool ours = fields.raw(sizeof magic - 1) == magic;
  m.version = fields.number<uint32_t>();
  m.nonce = fields.raw(nonce_bytes);
  return ours ? if_complete(fields, std::move(m)) : std::nullopt;
}
std::optional<Hello> decode_hello(const Frame& frame) {
  FieldReader fields(frame.fields);
  Hello m;
  fields.raw(proof_bytes);
  m.version = fields.number<uint32_t>();
  m.rank = fields.number<uint32_t>();
  m.ranks = fields.number<uint32_t>();
  m.host = fields.text();
  m.pid = fields.number<int64_t>();
  if (fields.good() && m.version != protocol_version) return m;
  m.machine = fields.text();
  m.network = fields.text();
  m.nonce = fields.raw(nonce_bytes);
  m.agreement.equal = fields.named();
  m.agreement.unique = fields.named();
  return if_complete(fields, std::move(m));
}
std::optional<Missing> decode_missing(const Frame& frame) {
  FieldReader fields(frame.fields);
  Missing m{.ranks = fields.text()};
  return if_complete(fields, std::move(m));
}
std::optional<Refused> decode_refused(const Frame& frame) {
  FieldReader fields(frame.fields);
  Refused m;
  m.what = fields.text();
  m.hint = fields.text();
  m.exit_code = fields.number<uint8_t>();
  return if_complete(fields, std::move(m));
}
std::optional<Welcome> decode_welcome(const Frame& frame) {
  FieldReader fields(frame.fields);
  Welcome m;
  m.proof = fields.raw(proof_bytes);
  m.timing.heartbeat_seconds = fields.number<double>();
  m.timing.deadline_seconds = fields.number<double>();
  m.timing.stall_seconds = fields.number<double>();
  m.peers.resize(fields.count(sizeof(int32_t) + sizeof(int64_t) + 3 * sizeof(uint32_t)));
  for (Peer& peer : m.peers) peer = fields.peer();
  return if_complete(fields, std::move(m));
}
std::optional<RankStatus> decode_status(const Frame& frame) {
  FieldReader fields(frame.fields);
  RankStatus m = fields.status();
  return if_complete(fields, std::move(m));
}
std::optional<Contribution> decode_contribution(const Frame& frame) {
  FieldReader fields(frame.fields);
  Contribution m;
  const auto kind = fields.number<uint8_t>();
  m.kind = static_cast<CollectKind>(kind);
  m.root = fields.number<uint32_t>();
  m.name = fields.text();
  m.value = fields.text();
  return kind <= static_cast<uint8_t>(CollectKind::Requests) ? if_complete(fields, std::move(m))
                                                             : std::nullopt;
}
std::optional<Collected> decode_collected(const Frame& frame) {
  FieldReader fields(frame.fields);
  Collected m;
  m.name = fields.text();
  m.values.resize(fields.count(sizeof(uint32_t)));
  for (std::string& value : m.values) value = fields.text();
  return if_complete(fields, std::move(m));
}
std::optional<Abort> decode_abort(const Frame& frame) {
  FieldReader fields(frame.fields);
  Abort m{.reason = fields.text()};
  return if_complete(fields, std::move(m));
}
std::optional<Suspect> decode_suspect(const Frame& frame) {
  FieldReader fields(frame.fields);
  Suspect m;
  m.rank = fields.number<uint32_t>();
  m.reason = fields.text();
  return if_complete(fields, std::move(m));
}
std::optional<RunFailure> decode_failure(const Frame& frame) {
  FieldReader fields(frame.fields);
  RunFailure m;
  m.peer = fields.peer();
  m.status = fields.status();
  m.reason = fields.text();
  return if_complete(fields, std::move(m));
}

std::optional<Frame> FrameParser::next() {
  const size_t have = buffer_.size() - at_;
  if (malformed_ || have < sizeof(uint32_t)) return std::nullopt;
  uint32_t length = 0;
  memcpy(&length, buffer_.data() + at_, sizeof length);
  if (length == 0 || length > limit_) {
    malformed_ = true;
    return std::nullopt;
  }
  if (have < sizeof length + length) return std::nullopt;
  const char* begin = buffer_.data() + at_ + sizeof length;
  const auto kind = static_cast<uint8_t>(*begin);
  if (kind < static_cast<uint8_t>(MessageKind::Challenge) ||
      kind > static_cast<uint8_t>(MessageKind::Farewell)) {
    malformed_ = true;
    return std::nullopt;
  }
  Frame frame{.kind = static_cast<MessageKind>(kind), .fields = std::string(begin + 1, length - 1)};
  at_ += sizeof length + length;
  // Bytes already read are dropped once they are the greater part: each is moved once on average.
  if (at_ * 2 >= buffer_.size()) {
    buffer_.erase(0, at_);
    at_ = 0;
  }
  return frame;
}

}  // namespace octet
