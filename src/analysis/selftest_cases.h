// What the cases of octet selftest are made of.
#pragma once
#include <string>
#include <vector>

#include "analysis/selftest.h"

namespace octet::selftest {

using Values = std::vector<float>;

Values normal(int64_t count, uint64_t key, double deviation = 1);
// Normal numbers over many binades, with zeros, subnormals of every format and the largest finite ones.
Values hard(int64_t count, uint64_t key);
std::string with_storage(DType storage, const std::string& rest);

void add_memory(std::vector<SelftestCase>& cases);
// Casts, and the operations that leave their result in a CastTarget.
void add_casts(std::vector<SelftestCase>& cases);
void add_producers(std::vector<SelftestCase>& cases);
void add_ends(std::vector<SelftestCase>& cases, Libraries libraries);  // embedding and cross-entropy
void add_update(std::vector<SelftestCase>& cases);
void add_products(std::vector<SelftestCase>& cases, Libraries libraries);
void add_attention(std::vector<SelftestCase>& cases, Libraries libraries);
void add_float8_attention(std::vector<SelftestCase>& cases, Libraries libraries);

}  // namespace octet::selftest
