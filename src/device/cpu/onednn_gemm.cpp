#include "device/cpu/onednn_gemm.h"

#ifdef OCTET_HAS_ONEDNN

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <tuple>
#include <unordered_map>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/unpack.h"
#include "device/scales.h"

namespace octet {
namespace {

using dnnl::memory;

bool is_code(DType t) { return t == DType::E4M3 || t == DType::E5M2; }
int64_t outer(const Operand& x) { return x.transposed ? x.values.columns() : x.values.rows(); }
int64_t inner(const Operand& x) { return x.transposed ? x.values.rows() : x.values.columns(); }

memory::data_type type_of(DType t) {
  return t == DType::F32 ? memory::data_type::f32 : memory::data_type::bf16;
}

// A power of two between 2^-40 and 2^40: code * scale is then exact in BF16 and products stay normal in FP32.
bool foldable(float scale) {
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  const uint32_t exponent = bits >> 23;
  return (bits & 0x7fffffu) == 0 && exponent >= 127 - 40 && exponent <= 127 + 40;
}
bool foldable(const Operand& x) {
  if (!x.inverse_scale) return true;
  const InverseScales scales = inverse_scales(x);
  const bool by_row = x.granularity != ScaleGranularity::Tensor, by_column = is_blocks(x.granularity);
  for (int64_t i = 0; i < (by_row ? outer(x) : 1); i += scales.row_block)
    for (int64_t k = 0; k < (by_column ? inner(x) : 1); k += scales.column_block)
      if (!foldable(scales.at(i, k))) return false;
  return true;
}

OCTET_VECTORIZED void multiply(uint16_t* x, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    value *= scale;
    uint32_t product;
    memcpy(&product, &value, 4);
    x[i] = static_cast<uint16_t>(product >> 16);
  }
}

// oneDNN takes its thread count from OpenMP.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

struct Key {
  int64_t m, n, k;
  DType type, out;
  bool a_transposed, b_transposed, accumulate;
  auto tied() const { return std::tie(m, n, k, type, out, a_transposed, b_transposed, accumulate); }
  bool operator<(const Key& other) const { return tied() < other.tied(); }
};
Key key_of(const Matmul& m) {
  return {m.out.rows(),   m.out.columns(),
          inner(m.a),     m.a.values.dtype == DType::F32 ? DType::F32 : DType::BF16,
          m.out.dtype,    m.a.transposed,
          m.b.transposed, m.accumulate};
}

struct Prepared {
  dnnl::matmul primitive;
  size_t scratch_bytes;
  // Views whose data is set before every run: making them anew would allocate in every product.
  std::unordered_map<int, memory> arguments;
};

class Implementation final : public OneDnnGemm {
 public:
  explicit Implementation(const Options& options)
      : threads_(options.threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const auto has = [](dnnl::cpu_isa isa) {
      return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & static_cast<unsigned>(isa)) ==
             static_cast<unsigned>(isa);
    };
    bfloat16_ = has(dnnl::cpu_isa::avx512_core_bf16);
    codes_ = bfloat16_ && (options.codes == Codes::Always || has(dnnl::cpu_isa::avx512_core_amx));
  }

  bool may_suit(const Matmul& m) override {
    const DType type = m.a.values.dtype;
    if (type != DType::F32 && !(is_code(type) ? codes_ : bfloat16_)) return false;
    const Key key = key_of(m);
    // Below this the call costs more than the product.
    if (key.m * key.n * key.k < 32 * 32 * 32) return false;
    return prepare(key) != nullptr;
  }
  bool suits(const Matmul& m) override { return may_suit(m) && foldable(m.a) && foldable(m.b); }

  size_t workspace_bytes(const Matmul& m) override {
    const Prepared* prepared = prepare(key_of(m));
    return align(decoded_bytes(m.a)) + align(decoded_bytes(m.b)) + (prepared ? prepared->scratch_bytes : 0);
  }

  void run(const Matmul& m, std::byte* workspace) override {
    Prepared* prepared = prepare(key_of(m));
    if (!prepared)
      throw Error(ExitCode::Internal, "oneDNN was asked for a product it has no implementation of",
                  "report this as a bug with the run's configuration");
    void* a = decoded(m.a, workspace);
    workspace += align(decoded_bytes(m.a));
    void* b = decoded(m.b, workspace);
    workspace += align(decoded_bytes(m.b));
    const ThreadScope threads(threads_);
    try {
      prepared->arguments.at(DNNL_ARG_SRC).set_data_handle(a);
      prepared->arguments.at(DNNL_ARG_WEIGHTS).set_data_handle(b);
      prepared->arguments.at(DNNL_ARG_DST).set_data_handle(m.out.data);
      prepared->arguments.at(DNNL_ARG_SCRATCHPAD).set_data_handle(workspace);
      prepared->primitive.execute(stream_, prepared->arguments);
      stream_.wait();
    } catch (const dnnl::error& error) {
      throw Error(ExitCode::Internal, std::string("oneDNN matmul failed: ") + error.what(),
                  "set run.deterministic to use the built-in product, and report this as a bug");
    }
  }
  const char* name(const Matmul& m) const override {
    return m.a.values.dtype == DType::F32 ? "onednn-f32" : "onednn-bf16";
  }

 private:
  static size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }
  static size_t decoded_bytes(const Operand& x) {
    return is_code(x.values.dtype) ? static_cast<size_t>(x.values.elements()) * 2 : 0;
  }

  void* decoded(const Operand& x, std::byte* to) const {
    if (!is_code(x.values.dtype)) return x.values.data;
    const int64_t rows = x.values.rows(), columns = x.values.columns();
    const InverseScales scales = inverse_scales(x);
    auto* values = reinterpret_cast<uint16_t*>(to);
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      uint16_t* row = values + i * columns;
      unpack_to_bfloat16(x.values.dtype, at(x.values, i * columns), row, columns);
      const int64_t together = is_blocks(x.granularity) ? scale_block : columns;
      for (int64_t k = 0; k < columns; k += together)
        if (const float scale = scales.at(i, k); scale != 1.0f)
          multiply(row + k, scale, std::min(together, columns - k));
    }
    return values;
  }

  // Null when oneDNN has nothing but its reference loop for this product.
  Prepared* prepare(const Key& key) {
    const auto found = prepared_.find(key);
    if (found != prepared_.end()) return found->second.get();
    const ThreadScope threads(threads_);
    std::unique_ptr<Prepared> made;
    try {
      made = make(key);
    } catch (const dnnl::error&) {
      made = nullptr;
    }
    return prepared_.emplace(key, std::move(made)).first->second.get();
  }
  std::unique_ptr<Prepared> make(const Key& key) const {
    const auto [m, n, k] = std::tuple(key.m, key.n, key.k);
    const memory::data_type type = type_of(key.type);
    const memory::desc a({m, k}, type, key.a_transposed ? memory::dims{1, m} : memory::dims{k, 1});
    const memory::desc b({k, n}, type, key.b_transposed ? memory::dims{n, 1} : memory::dims{1, k});
    const memory::desc out({m, n}, type_of(key.out), memory::dims{n, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);  // F32 stays F32, whatever the environment says
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine_, a, b, out, attributes);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, out), attributes, engine_);
#endif
    if (std::string(description.impl_info_str()).find("ref") != std::string::npos) return nullptr;
    const memory::desc scratch = description.scratchpad_desc();
    const auto view = [this](const memory::desc& layout) {
      return memory(layout, engine_, DNNL_MEMORY_NONE);
    };
    return std::make_unique<Prepared>(Prepared{dnnl::matmul(description),
                                               scratch.get_size(),
                                               {{DNNL_ARG_SRC, view(a)},
                                                {DNNL_ARG_WEIGHTS, view(b)},
                                                {DNNL_ARG_DST, view(out)},
                                                {DNNL_ARG_SCRATCHPAD, view(scratch)}}});
  }

  int threads_;
  bool bfloat16_ = false, codes_ = false;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Key, std::unique_ptr<Prepared>> prepared_;
};

}  // namespace

std::unique_ptr<OneDnnGemm> OneDnnGemm::create(const Options& options) {
  return std::make_unique<Implementation>(options);
}

}  // namespace octet

#else

namespace octet {
std::unique_ptr<OneDnnGemm> OneDnnGemm::create(const Options&) { return nullptr; }
}  // namespace octet

#endif
