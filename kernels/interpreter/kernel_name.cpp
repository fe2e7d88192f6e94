#include "kernels/interpreter/kernel_name.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace gpu {
inline namespace interpreted {
namespace {

// The function symbol at `address` in the file that it was loaded from. [System V ABI, "Symbol Table"]
std::string symbol_at(const void* address) {
  Dl_info loaded;
  link_map* map = nullptr;
  if (!dladdr1(address, &loaded, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP)) return "";
  const char* const file = map->l_name && *map->l_name ? map->l_name : "/proc/self/exe";
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> image((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto at = [&]<class T>(const T*, uint64_t offset, uint64_t index) -> const T* {
    const uint64_t begin = offset + index * sizeof(T);
    return begin + sizeof(T) <= image.size() ? reinterpret_cast<const T*>(image.data() + begin) : nullptr;
  };
  const ElfW(Ehdr)* const header = at(static_cast<const ElfW(Ehdr)*>(nullptr), 0, 0);
  if (header == nullptr) return "";
  const uintptr_t wanted = reinterpret_cast<uintptr_t>(address) - map->l_addr;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    const ElfW(Shdr)* const table = at(static_cast<const ElfW(Shdr)*>(nullptr), header->e_shoff, i);
    if (table == nullptr || table->sh_type != SHT_SYMTAB) continue;
    const ElfW(Shdr)* const names =
        at(static_cast<const ElfW(Shdr)*>(nullptr), header->e_shoff, table->sh_link);
    for (uint64_t j = 0; names && j < table->sh_size / sizeof(ElfW(Sym)); ++j) {
      const ElfW(Sym)* const symbol = at(static_cast<const ElfW(Sym)*>(nullptr), table->sh_offset, j);
      if (symbol == nullptr) return "";
      if (symbol->st_value != wanted || (symbol->st_info & 0xf) != STT_FUNC) continue;
      const uint64_t name = names->sh_offset + symbol->st_name;
      if (name < image.size()) return image.data() + name;
    }
  }
  return "";
}

}  // namespace

std::string kernel_name(const GridLaunch& launch) {
  std::string name = symbol_at(launch.kernel);
  if (char* plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr)) {
    name = plain;
    std::free(plain);
  }
  const std::string place = std::string(launch.file) + ":" + std::to_string(launch.line);
  return "kernel " + (name.empty() ? "" : name + ", ") + "launched by " + launch.launcher + " (" + place +
         ")";
}

}  // namespace interpreted
}  // namespace gpu
