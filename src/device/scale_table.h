// The scale state of every site of every layer, in one table.  [docs/numerics.md, "Scale state"]
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "numerics/recipe.h"
#include "tensor/memory_plan.h"

namespace octet {

// While statistics are on, and where scales follow them. 64-bit integers: the order of counting is no matter.
struct CastCounters {
  uint64_t elements, saturated, flushed;  // flushed: non-zero values that became zero
};

// One place in one layer where a cast happens, as an operation sees it. Pointers are device memory.
struct Site {
  float* scale =
      nullptr;  // multiplied before encoding; 0 = no history yet: the cast uses this tensor's own amax
  float* inverse_scale =
      nullptr;            // what the GEMM multiplies by; the cast writes it when it computes the scale itself
  float* amax = nullptr;  // running maximum over this step's casts
  CastCounters* counters = nullptr;  // null: do not count
};

struct SiteInfo {
  std::string name;  // "blocks.3.ffn.down.input"
  int block = 0;
  Cast cast;
  float static_scale = 1;  // Scaling::Static
};

struct ScaleTable {
  std::vector<SiteInfo> sites;
  Tensor amax_history;   // F32 [window, sites]: ring, row (step % window) is the newest
  Tensor scale;          // F32 [sites]; 0 = no history yet
  Tensor inverse_scale;  // F32 [sites]
  Tensor amax;           // F32 [sites], this step's
  Tensor counters;       // U64 [sites, 3]
  Tensor casts;          // U8 [sites, sizeof(Cast)]: the sites' rules for a device, see upload_casts()
  bool count = false;    // statistics on for this step

  int add(SiteInfo info) {
    sites.push_back(std::move(info));
    return static_cast<int>(sites.size()) - 1;
  }
  void plan(MemoryPlan& plan, int window);  // after the last add()
  Site site(int index) const;
};

class Device;
void upload_casts(Device& device, const ScaleTable& table);  // once, when the table is placed
void check(const struct ScaleTableUpdate& update);           // Error(Internal) when it does not fit the table

}  // namespace octet
