// Catch2 2.13 (Debian 12, Ubuntu 22.04) and 3.x (Ubuntu 24.04) under one include.
#pragma once
#include <string>
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
// CHECK_THROWS_WITH(expression, contains_text("part of the message"))
inline auto contains_text(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
#include <catch2/catch.hpp>
inline auto contains_text(const std::string& part) { return Catch::Matchers::Contains(part); }
#endif
