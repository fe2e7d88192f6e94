// One id a byte, and one for the end of text, which goes before each document as llm.c's writers put it.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace octet::byte_tokenizer {
inline constexpr int32_t end_of_text = 256;
inline constexpr int64_t vocabulary = 257;
// Bytes become characters, the end of text "<|endoftext|>"; Error(Data) for any other id.
std::string decode(std::span<const int64_t> ids);
}  // namespace octet::byte_tokenizer
