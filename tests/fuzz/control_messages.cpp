// Any bytes as a stream of control messages: frames within the limit, fields within their frame, and what
// decodes encodes to the same frame again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "comm/wire.h"

namespace {

using namespace octet;

// `Decoded` is nullopt for malformed fields; otherwise its encoding is the frame that was decoded.
template <class Decoded>
void check_again(const Decoded& message, const Frame& frame) {
  if (!message) return;
  FrameParser parser;
  parser.add(encode(*message));
  const auto again = parser.next();
  if (!again || again->kind != frame.kind || again->fields != frame.fields) std::abort();
}

void check_frame(const Frame& frame) {
  switch (frame.kind) {
    case MessageKind::Challenge:
      return check_again(decode_challenge(frame), frame);
    case MessageKind::Hello:
      if (is_proven(frame, "key", "nonce")) std::abort();  // nobody here can
      decode_hello(frame);
      return;
    case MessageKind::Missing:
      return check_again(decode_missing(frame), frame);
    case MessageKind::Refused:
      return check_again(decode_refused(frame), frame);
    case MessageKind::Welcome:
      return check_again(decode_welcome(frame), frame);
    case MessageKind::Status:
      return check_again(decode_status(frame), frame);
    case MessageKind::Contribution:
      return check_again(decode_contribution(frame), frame);
    case MessageKind::Collected:
      return check_again(decode_collected(frame), frame);
    case MessageKind::Abort:
      return check_again(decode_abort(frame), frame);
    case MessageKind::Suspect:
      return check_again(decode_suspect(frame), frame);
    case MessageKind::Failed:
      if (const auto failure = decode_failure(frame)) text_of(*failure);
      return check_again(decode_failure(frame), frame);
    default:
      return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // In two pieces, as they may come.
  FrameParser parser(FrameParser::stranger_limit);
  size_t taken = 0;
  for (const std::string_view piece : {bytes.substr(0, size / 3), bytes.substr(size / 3)}) {
    parser.add(piece);
    while (const auto frame = parser.next()) {
      taken += frame->fields.size() + 5;
      check_frame(*frame);
    }
  }
  if (taken > size) std::abort();
  return 0;
}
