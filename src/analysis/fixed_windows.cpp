#include "analysis/fixed_windows.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/loader.h"

namespace octet {
namespace {

std::vector<DataSource> sources_of(const RunConfig& config, const std::vector<std::string>& files) {
  if (!files.empty()) return {DataSource{"data", files, 1}};
  return config.data.validation.empty() ? config.data.train : config.data.validation;
}

}  // namespace

FixedWindows fixed_windows(const RunConfig& config, int64_t wanted, const std::vector<std::string>& files) {
  const std::vector<DataSource> sources = sources_of(config, files);
  const int64_t micro = config.batch.micro, context = config.model.context;
  const Dataset data(sources, config.data.raw_width, context, config.model.vocabulary);
  FixedWindows windows;
  for (const DataSource& source : sources)
    windows.files.insert(windows.files.end(), source.files.begin(), source.files.end());
  int64_t there = 0;
  for (size_t s = 0; s < sources.size(); ++s) there += data.windows(static_cast<int>(s));
  windows.count = std::min(wanted, there);
  if (windows.count == 0)
    throw Error(ExitCode::Data, fmt::format("no window of {} tokens in the shards", context + 1),
                "name longer shards with --data");
  windows.batches = (windows.count + micro - 1) / micro;
  const SampleOrder order(data, 0, WindowOrder::Shuffled);
  std::vector<int32_t> window(static_cast<size_t>(context) + 1);
  for (int64_t i = 0; i < windows.batches * micro; ++i) {
    const SampleLocation at = order.locate(std::min(i, windows.count - 1));
    data.read(at.source, at.window, window);
    windows.tokens.insert(windows.tokens.end(), window.begin(), window.end() - 1);
    if (i < windows.count)
      windows.targets.insert(windows.targets.end(), window.begin() + 1, window.end());
    else
      windows.targets.insert(windows.targets.end(), static_cast<size_t>(context), -1);
  }
  return windows;
}

}  // namespace octet
