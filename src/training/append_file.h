// Best-effort appending for logs: a fault is reported once and returned, never thrown (F41, F48).
#pragma once
#include <filesystem>
#include <string_view>

namespace octet {
int open_for_append(const std::filesystem::path& path) noexcept;  // -1 after a warning
// One write(2) for the whole text, so that a kill leaves at most one torn record at the end.
bool append_all(int descriptor, const std::filesystem::path& path, std::string_view text) noexcept;
}  // namespace octet
