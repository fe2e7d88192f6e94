#include "data/scan.h"

#include <algorithm>
#include <vector>

#include "base/hash.h"
#include "data/byte_tokenizer.h"
#include "data/shard_reader.h"

namespace octet {

ScanResult scan_shard(const ShardInfo& info, const ScanOptions& options) {
  const ShardReader reader(info);
  const int64_t all = std::min(info.tokens, options.limit);
  std::vector<int64_t> ids;
  StreamHash hash;
  ScanResult result;
  for (int64_t first = 0; first < all; first += static_cast<int64_t>(ids.size())) {
    ids.resize(static_cast<size_t>(std::min<int64_t>(all - first, 1 << 18)));
    reader.read(first, ids);
    hash.update(ids.data(), ids.size() * sizeof(int64_t));
    const auto [low, high] = std::minmax_element(ids.begin(), ids.end());
    result.smallest = first == 0 ? *low : std::min(result.smallest, *low);
    result.largest = first == 0 ? *high : std::max(result.largest, *high);
    result.documents += std::count(ids.begin(), ids.end(), options.end_of_text);
    const int64_t bound = options.vocabulary > 0 ? options.vocabulary : INT32_MAX;
    if (*low < 0 || *high >= bound)
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] >= 0 && ids[i] < bound) continue;
        if (!result.problem)
          result.problem = token_out_of_range(info, first + static_cast<int64_t>(i), ids[i], bound);
        ++result.out_of_range;
      }
    result.tokens += static_cast<int64_t>(ids.size());
    if (options.progress) options.progress(result.tokens);
  }
  if (options.end_of_text < 0) result.documents = 0;
  result.hash = hash.digest();
  return result;
}

int64_t likely_end_of_text(const ShardInfo& info, int64_t largest_id) {
  if (largest_id <= byte_tokenizer::end_of_text) return byte_tokenizer::end_of_text;
  return info.token_bytes <= 2 ? 50256 : 128000;
}

}  // namespace octet
