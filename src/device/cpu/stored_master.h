// Masters as they are stored: spans of them are read and written as FP32. [numerics/masters.h]
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

class StoredMasters {
 public:
  // Random numbers of stochastic rounding: random_bits(key, first + element). Null: to nearest.
  struct Draws {
    uint64_t key = 0;
    int64_t first = 0;
  };

  StoredMasters(const Tensor& values, const MasterCode& code) : values_(values), code_(code) {}

  void load(int64_t begin, int64_t n, float* w) const;    // what an update starts from
  void values(int64_t begin, int64_t n, float* w) const;  // what the model sees
  // Whole blocks of master_block, or their rest.
  void store(int64_t begin, int64_t n, const float* w, const Draws* draws) const;
  // Of the first n values, as they are: where an update changes nothing their amax is wanted all the same.
  void raise_amax(int64_t n, const Tensor& amax) const;

 private:
  template <class Read>
  void for_stored(int64_t begin, int64_t n, float* w, const Read& read) const;
  uint16_t* numbers() const { return static_cast<uint16_t*>(values_.data); }
  uint16_t* rests() const { return static_cast<uint16_t*>(code_.rest.data); }

  Tensor values_;
  MasterCode code_;
};

// amax = max(amax, BF16 of the value of these bits). Rounding keeps the order, so that the largest magnitude
// may be rounded instead of each.
void raise_master_amax(const Tensor& amax, uint32_t largest);

}  // namespace octet
