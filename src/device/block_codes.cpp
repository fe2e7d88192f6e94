#include "device/block_codes.h"

#include <fmt/format.h>

#include "base/error.h"
#include "numerics/block_codes.h"

namespace octet {
namespace {

// `values` [n] and messages [..., pieces, bytes].
void check_messages(const char* operation, const Tensor& values, const Tensor& messages, int64_t piece) {
  const int last = messages.shape.rank() - 1;
  const bool right = (values.dtype == DType::F32 || values.dtype == DType::BF16) &&
                     messages.dtype == DType::U8 && piece > 0 && last >= 1 &&
                     messages.shape[last] == message_bytes(piece) &&
                     values.elements() <= messages.shape[last - 1] * piece &&
                     reinterpret_cast<uintptr_t>(messages.data) % 16 == 0;
  if (!right)
    throw Error(ExitCode::Internal,
                fmt::format("{}: {} values of {}, messages {} of {} values ({} bytes, 16-byte aligned) each",
                            operation, values.elements(), name_of(values.dtype), to_string(messages.shape),
                            piece, piece > 0 ? message_bytes(piece) : 0));
}

}  // namespace

void check(const EncodeBlocks& op) {
  check_messages("encode_blocks", op.source, op.messages, op.piece);
  if (op.messages.shape.rank() != 2 || op.saturated.dtype != DType::U32 || op.saturated.elements() != 1)
    throw Error(ExitCode::Internal,
                fmt::format("encode_blocks: messages {}, {} counters of {}", to_string(op.messages.shape),
                            op.saturated.elements(), name_of(op.saturated.dtype)));
}

void check(const DecodeBlocks& op) {
  check_messages("decode_blocks", op.out, op.messages, op.piece);
  if (op.messages.shape.rank() != 3 || op.messages.shape[0] < 1)
    throw Error(ExitCode::Internal, fmt::format("decode_blocks: messages {}", to_string(op.messages.shape)));
}

}  // namespace octet
