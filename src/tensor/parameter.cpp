#include "tensor/parameter.h"

#include "numerics/masters.h"

namespace octet {

MasterCode part_of(const MasterCode& code, int64_t begin, int64_t count) {
  MasterCode part = code;
  if (!code.rest.empty()) part.rest = code.rest.flat().slice(begin, count);
  if (!code.inverse.empty())
    part.inverse = code.inverse.slice(begin / master_block, (count + master_block - 1) / master_block);
  return part;
}

}  // namespace octet
