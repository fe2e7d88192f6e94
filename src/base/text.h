// Text for people: escaping, suggestions, units.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace octet {
std::string escape_control(std::string_view text);  // control and escape bytes become \xNN: safe to print
std::string escape_html(std::string_view text);     // control bytes as above, then the five of HTML
size_t edit_distance(std::string_view a, std::string_view b);
// The candidate nearest to `word`, or empty when none is near (distance <= max(2, length / 3)).
std::string nearest(std::string_view word, std::span<const std::string> candidates);
std::string human_bytes(uint64_t bytes);     // "1.50 GiB"
std::string human_count(double count);       // "124.4M"
std::string human_duration(double seconds);  // "2h 03m", "41 s"
// "1 window", "2 windows", "2 micro-batches"; `one` is the singular, a regular noun.
std::string plural(int64_t count, std::string_view one);
std::string iso_time(double unix_seconds);  // "2026-11-21T23:04:05Z"
}  // namespace octet
