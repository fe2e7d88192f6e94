// What sharded gradients take, and what they save.
#include <map>
#include <set>

#include "catch.h"
#include "training/run_memory.h"

using namespace octet;

namespace {

// Blocks of 851,968 weights in four matrices, and tables of 69,632: five pieces of the norm, which ranks
// share out unevenly.
RunConfig config_of(int zero, const std::string& more = "") {
  return parse_config(R"({
    "run": {"name": "shards", "steps": 8},
    "model": {"layers": 12, "width": 256, "heads": 4, "ffn_width": 768, "context": 32, "vocabulary": 272},
    "batch": {"tokens": 512, "micro": 2},
    "parallel": {"reduce": "fp32", "zero": )" +
                          std::to_string(zero) + "}" + more + "}",
                      "shards", {});
}

struct Planned {
  std::map<Category, size_t> bytes;
  size_t peak = 0;
  std::vector<Parameter> parameters;
};
Planned plan_of(const RunConfig& config, const Sharding& place) {
  MemoryPlan device, host, offload;
  RunMemory memory(nullptr, config, {device, host, offload}, place);
  Planned planned{{}, device.peak_bytes(), memory.model.parameters()};
  for (const MemoryPlan::Item& item : device.items()) planned.bytes[item.category] += item.bytes;
  return planned;
}

}  // namespace

TEST_CASE("sharded gradients: FP32 sums of the shards stay, two blocks and a table are scratch") {
  for (const int ranks : {1, 2, 4}) {
    const Planned whole = plan_of(config_of(1), {0, ranks}), shards = plan_of(config_of(2), {0, ranks});
    size_t block = 0, table = 0, vectors = 0, sums = 0, gradients = 0;
    for (const Parameter& p : shards.parameters) {
      const auto bytes = static_cast<size_t>(p.gradient.elements()) * 4;
      gradients += bytes;
      if (p.kind == ParameterKind::Vector) {
        vectors += bytes;
        continue;
      }
      // The elements of every rank's shard, or all of them and padding.
      CHECK(p.gradient_sum.elements() == (p.shard > 0 ? p.shard : p.padded_gradient.elements()));
      CHECK(p.padded_gradient.elements() * 4 < static_cast<int64_t>(bytes) + ranks * 16384 * 4);
      sums += p.gradient_sum.bytes();
      if (p.kind == ParameterKind::Embedding) table = p.padded_gradient.bytes();
      if (p.name.find("blocks.0.") == 0) block += p.padded_gradient.bytes();
    }
    INFO(ranks << " ranks: a block " << block << ", a table " << table << ", gradients " << gradients);
    // To the bytes that alignment adds to some hundred tensors.
    const size_t slack = 256 * 3 * shards.parameters.size();
    CHECK(whole.bytes.at(Category::Gradients) >= gradients);
    CHECK(shards.bytes.at(Category::Gradients) >= sums + vectors);
    CHECK(shards.bytes.at(Category::Gradients) <= sums + vectors + slack);
    // Received pieces: of a block or a table at once, and of all vectors.
    const size_t ring = ranks == 1 ? 0 : std::max(block, table) + vectors,
                 scratch = 2 * block + table + vectors + ring;
    const size_t saved = whole.bytes.at(Category::Gradients) - shards.bytes.at(Category::Gradients);
    CHECK(shards.peak <= whole.peak - saved + scratch + slack);
    CHECK(shards.peak + slack >= whole.peak - saved + scratch);
    if (ranks > 1) CHECK(sums < gradients / static_cast<size_t>(ranks) * 11 / 10);
    CHECK((shards.peak < whole.peak) == (ranks > 1));
  }
}

TEST_CASE("sharded gradients of blocks take turns with two slots, and no two of a block share any") {
  MemoryPlan sizes, host, offload;
  { const RunMemory measured(nullptr, config_of(2), {sizes, host, offload}, {0, 2}); }
  const auto device = make_cpu_device({.threads = 1});
  void* const arena = device->allocate(sizes.peak_bytes());
  MemoryPlan placed(arena, sizes.peak_bytes()), host_again;
  {
    RunMemory memory(device.get(), config_of(2), {placed, host_again, offload}, {0, 2});
    std::map<std::string, const Parameter*> by_name;
    for (const Parameter& p : memory.model.parameters()) by_name[p.name] = &p;
    const auto data = [&](int block, const std::string& name) {
      return by_name.at("blocks." + std::to_string(block) + "." + name)->gradient.data;
    };
    std::set<void*> distinct;
    const std::vector<std::string> matrices = {"attention.qkv.weight", "attention.out.weight",
                                               "ffn.gate_up.weight", "ffn.down.weight"};
    for (const std::string& matrix : matrices) {
      distinct.insert(data(0, matrix));
      distinct.insert(data(1, matrix));
      for (int block = 2; block < 12; ++block) CHECK(data(block, matrix) == data(block % 2, matrix));
    }
    CHECK(distinct.size() == 8);
    CHECK(by_name.at("embedding.weight")->gradient.data == by_name.at("head.weight")->gradient.data);
    CHECK(distinct.count(by_name.at("head.weight")->gradient.data) == 0);
    // Of vectors there is one each.
    std::set<void*> gains;
    for (int block = 0; block < 12; ++block)
      for (const char* norm : {"attention_norm.gain", "ffn_norm.gain"}) gains.insert(data(block, norm));
    CHECK(gains.size() == 24);
  }
  device->free(arena);
}
