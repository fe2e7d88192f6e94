#include "training/rank_group.h"

#include <fmt/format.h>

#include "base/error.h"
#include "comm/control_plane.h"

namespace octet {
namespace {

// What a rank tells: '+' and its result, or '-', the cause, 0, the hint.
constexpr char succeeded = '+', failed = '-';

std::string failure(const std::string& cause, const std::string& hint) {
  return failed + cause + '\0' + hint;
}

}  // namespace

RankGroup rank_group(ControlPlane& control) {
  RankGroup group;
  group.rank = control.rank();
  group.ranks = control.ranks();
  group.all_gather = [&control](const std::string& name, const std::string& mine) {
    return control.all_gather(name, mine);
  };
  group.progress = [&control] { control.progress(); };
  return group;
}

std::vector<std::string> together(const RankGroup& group, const std::string& name,
                                  const std::function<std::string()>& work) {
  if (group.alone()) return {work()};
  std::string mine;
  try {
    mine = succeeded + work();
  } catch (const Error& error) {
    mine = failure(error.what(), error.hint());
  } catch (const std::exception& error) {
    mine = failure(error.what(), {});
  }
  std::vector<std::string> told = group.all_gather(name, mine);
  for (size_t rank = 0; rank < told.size(); ++rank) {
    std::string& text = told[rank];
    if (text.empty() || text[0] != succeeded) {
      const size_t end = text.find('\0');
      const std::string cause = text.empty() ? "nothing" : text.substr(1, end - 1);
      throw Error(ExitCode::Checkpoint, fmt::format("rank {}: {}", rank, cause),
                  end == std::string::npos ? std::string() : text.substr(end + 1));
    }
    text.erase(0, 1);
  }
  return told;
}

}  // namespace octet
