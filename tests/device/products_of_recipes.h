// The products of a layer and of the head as shapes, in every pair of formats a recipe can choose.
#pragma once
#include <vector>

#include "device/device.h"

namespace octet {

struct ProductShape {
  int64_t m, n, k;
};

inline Operand operand(DType type, int64_t outer, int64_t inner, bool transposed = false) {
  Operand x;
  x.values = {nullptr, type, transposed ? Shape{inner, outer} : Shape{outer, inner}};
  x.transposed = transposed;
  return x;
}

inline Matmul product(GemmClass c, DType a, DType b, DType out, ProductShape s = {256, 128, 64}) {
  Matmul m;
  m.gemm_class = c;
  // Linear leaves BF16 and F32 where they are: dgrad reads the weight, wgrad both operands, transposed.
  const bool wide = size_of(a) > 1;
  const bool dgrad = c == GemmClass::Dgrad || c == GemmClass::HeadDgrad;
  const bool wgrad = c == GemmClass::Wgrad || c == GemmClass::HeadWgrad;
  m.a = operand(a, s.m, s.k, wide && wgrad);
  m.b = operand(b, s.n, s.k, wide && (dgrad || wgrad));
  m.out = {nullptr, out, {s.m, s.n}};
  m.accumulate = wgrad;
  m.fast_accumulation = c == GemmClass::Fprop;  // whatever the formats: the key must not care
  return m;
}

inline std::vector<Matmul> products_of_recipes() {
  struct Pair {
    DType a, b;
  };
  std::vector<Matmul> all;
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad, GemmClass::HeadFprop,
                            GemmClass::HeadDgrad, GemmClass::HeadWgrad})
    for (const Pair pair :
         {Pair{DType::F32, DType::F32}, Pair{DType::BF16, DType::BF16}, Pair{DType::E4M3, DType::E4M3},
          Pair{DType::E5M2, DType::E4M3}, Pair{DType::E4M3, DType::E5M2}})
      for (const DType out : {DType::F32, DType::BF16}) {
        if (pair.a == DType::F32 && out == DType::BF16) continue;
        all.push_back(product(c, pair.a, pair.b, out));
      }
  return all;
}

}  // namespace octet
