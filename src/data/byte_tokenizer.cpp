#include "data/byte_tokenizer.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet::byte_tokenizer {

std::string decode(std::span<const int64_t> ids) {
  std::string text;
  text.reserve(ids.size());
  for (const int64_t id : ids) {
    if (id == end_of_text)
      text += "<|endoftext|>";
    else if (id >= 0 && id < end_of_text)
      text += static_cast<char>(static_cast<unsigned char>(id));
    else
      throw Error(ExitCode::Data,
                  fmt::format("id {} is no byte and not the end of text ({})", id, end_of_text),
                  "the shard was written with another tokenizer");
  }
  return text;
}

}  // namespace octet::byte_tokenizer
