// Fuzz target: any bytes as a configuration end in a configuration that reads back as itself, or in a usage
// error.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "config/run_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 65536) return 0;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const octet::RunConfig config = octet::parse_config(text, "fuzz.json");
    if (!(octet::parse_config(octet::to_json(config), "resolved.json") == config)) std::abort();
  } catch (const octet::Error& error) {
    if (error.code() != octet::ExitCode::Usage) std::abort();
  }
  try {  // the same bytes as an override
    (void)octet::parse_config("{}", "fuzz.json", {text});
  } catch (const octet::Error& error) {
    if (error.code() != octet::ExitCode::Usage) std::abort();
  }
  return 0;
}
