// Proof that a peer belongs to this job, without showing the secret: HMAC-SHA-256 over the other side's
// random challenge.  [FIPS 180-4, RFC 2104; vectors in tests/comm]
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace octet {

std::string sha256(std::string_view data);                             // 32 bytes
std::string hmac_sha256(std::string_view key, std::string_view data);  // 32 bytes
bool equal_in_constant_time(std::string_view a, std::string_view b);
std::string random_bytes(size_t count);  // of the operating system

}  // namespace octet
