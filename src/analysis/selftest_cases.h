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
void add_layers(std::vector<SelftestCase>& cases);  // the producers that a Llama does not have

// What a producer is asked for: nothing, or codes with one of several scales; with one scale a row and a
// column.
size_t producer_variant_count();
const char* producer_variant_name(size_t variant);
CastTarget producer_target(Workbench& w, size_t variant, DType storage, int64_t rows, int64_t columns);
CastTarget dual_target(Workbench& w, DType storage, int64_t rows, int64_t columns);
void compare_cast(Workbench& w, const CastTarget& out);
Values rope_table(int64_t context, int64_t half, bool sine);
void add_ends(std::vector<SelftestCase>& cases, Libraries libraries);  // embedding and cross-entropy
void add_update(std::vector<SelftestCase>& cases);
void add_optimizer(std::vector<SelftestCase>& cases);  // AdamW, Muon, masters, mean squares of updates
void add_products(std::vector<SelftestCase>& cases, Libraries libraries);
void add_attention(std::vector<SelftestCase>& cases, Libraries libraries);
void add_observation(std::vector<SelftestCase>& cases);  // what the health monitor looks at
void add_float8_attention(std::vector<SelftestCase>& cases, Libraries libraries);

}  // namespace octet::selftest
