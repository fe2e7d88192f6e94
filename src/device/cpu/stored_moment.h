// One of Adam's moments as it is stored: spans of it are read and written as FP32. [numerics/moments.h]
#pragma once
#include <cstdint>

#include "device/device.h"
#include "numerics/moments.h"

namespace octet {

class StoredMoment {
 public:
  StoredMoment(const MomentTensor& tensor, Moment order);

  bool coded() const { return is_coded_moment(format_); }
  bool one_scale() const { return coded() && tensor_.block == 0; }
  int64_t block() const { return tensor_.block; }
  MomentScale scale_of(float amax) const { return moment_scale(format_, amax); }

  void read(int64_t begin, int64_t n, float* to) const;
  // Whole blocks, or their rest. `shared`: the scale of the whole tensor, when it has one; its inverse is
  // stored by set_inverse() at the end.
  void write(int64_t begin, int64_t n, const float* from, float shared) const;
  void set_inverse(int64_t block, float inverse) const { tensor_.inverse.as<float>()[block] = inverse; }

 private:
  bool expanded() const { return !tensor_.exponents.empty(); }
  void write_expanded(int64_t block, int64_t at, const float* values, int64_t n) const;
  void encode(const float* values, float scale, int64_t at, int64_t n) const;
  template <class Body>
  void for_blocks(int64_t begin, int64_t n, const Body& body) const;

  MomentTensor tensor_;
  Moment order_;
  Format format_;
};

}  // namespace octet
