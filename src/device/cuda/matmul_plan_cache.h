// Which of its algorithms cuBLASLt runs a product with, kept in a file for each GPU, driver and cuBLASLt, so
// that a run can be repeated bit for bit and starts without measuring again.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace octet {

using MatmulChoice = std::array<uint64_t, 8>;  // a cublasLtMatmulAlgo_t

class MatmulPlanCache {
 public:
  // Reads the file when it is there. One that is damaged, or of another machine, is ignored with a warning.
  // An empty path keeps nothing.
  MatmulPlanCache(std::filesystem::path file, std::string machine);
  const MatmulChoice* find(const std::string& key) const;
  void put(const std::string& key, const MatmulChoice& choice) { choices_[key] = choice; }
  void save() const;  // atomically; a warning when it cannot be written

 private:
  bool read(const std::string& text);

  std::filesystem::path file_;
  std::string machine_;
  std::map<std::string, MatmulChoice> choices_;
};

// $XDG_CACHE_HOME/octet, or ~/.cache/octet; the machine's letters and digits make the name. Empty: no home.
std::filesystem::path matmul_plan_file(const std::string& machine);

}  // namespace octet
