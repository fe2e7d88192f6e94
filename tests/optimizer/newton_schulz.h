// Newton-Schulz in FP64 beside that of the optimizer, singular values, and a bound of what roundings do.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "numerics/bfloat16.h"
#include "numerics/muon.h"
#include "tensor/tensor.h"

namespace octet::test {

inline constexpr double unit = 0x1p-24;  // half an ulp of FP32

// ---- matrices in FP64

struct Dense {
  int64_t rows, columns;
  std::vector<double> values;
  Dense(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
};
inline Dense transposed(const Dense& x) {
  Dense y(x.columns, x.rows);
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.columns; ++c) y.at(c, r) = x.at(r, c);
  return y;
}
inline Dense times(const Dense& x, const Dense& y) {
  Dense z(x.rows, y.columns);
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t k = 0; k < x.columns; ++k)
      for (int64_t c = 0; c < y.columns; ++c) z.at(r, c) += x.at(r, k) * y.at(k, c);
  return z;
}
inline Dense sum(double alpha, const Dense& x, double beta, const Dense& y) {
  Dense z = x;
  for (size_t i = 0; i < z.values.size(); ++i) z.values[i] = alpha * x.values[i] + beta * y.values[i];
  return z;
}
inline double norm(const Dense& x) {
  double squares = 0;
  for (const double v : x.values) squares += v * v;
  return std::sqrt(squares);
}
inline Dense dense_of(const Tensor& x) {
  Dense y(x.rows(), x.columns());
  for (size_t i = 0; i < y.values.size(); ++i)
    y.values[i] =
        static_cast<double>(x.dtype == DType::F32 ? x.as<float>()[i] : to_float(x.as<BFloat16>()[i]));
  return y;
}

// By one-sided Jacobi rotations: columns become orthogonal, their norms are the singular values.
inline std::vector<double> singular_values(Dense x) {
  if (x.columns > x.rows) x = transposed(x);
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0;
    for (int64_t p = 0; p < x.columns; ++p)
      for (int64_t q = p + 1; q < x.columns; ++q) {
        double pp = 0, qq = 0, pq = 0;
        for (int64_t r = 0; r < x.rows; ++r) {
          pp += x.at(r, p) * x.at(r, p);
          qq += x.at(r, q) * x.at(r, q);
          pq += x.at(r, p) * x.at(r, q);
        }
        if (std::fabs(pq) <= 1e-15 * std::sqrt(pp * qq) || pq == 0) continue;
        off = std::max(off, std::fabs(pq) / std::sqrt(pp * qq));
        const double zeta = (qq - pp) / (2 * pq),
                     t = (zeta >= 0 ? 1.0 : -1.0) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta)),
                     c = 1 / std::sqrt(1 + t * t), s = c * t;
        for (int64_t r = 0; r < x.rows; ++r) {
          const double a = x.at(r, p), b = x.at(r, q);
          x.at(r, p) = c * a - s * b;
          x.at(r, q) = s * a + c * b;
        }
      }
    if (off < 1e-14) break;
  }
  std::vector<double> values;
  for (int64_t c = 0; c < x.columns; ++c) {
    double squares = 0;
    for (int64_t r = 0; r < x.rows; ++r) squares += x.at(r, c) * x.at(r, c);
    values.push_back(std::sqrt(squares));
  }
  std::sort(values.begin(), values.end());
  return values;
}

// ---- Newton-Schulz in FP64, with a bound of what roundings do to it

inline constexpr double a = static_cast<double>(NewtonSchulz::a), b = static_cast<double>(NewtonSchulz::b),
                        c = static_cast<double>(NewtonSchulz::c);
inline double polynomial(double s) { return a * s + b * s * s * s + c * s * s * s * s * s; }
inline double slope(double s) { return a + 3 * b * s * s + 5 * c * s * s * s * s; }

// How far an error of X may grow in an iteration, to first order: the derivative of an odd function of a
// matrix has as factors the divided differences of the polynomial at pairs of singular values and their
// negatives.  [Daleckii & Krein; Noferini 2017, theorem 2.5]
inline double growth(const std::vector<double>& s) {
  double most = std::fabs(a);  // a matrix that is not square: p(s) / s
  for (const double x : s) {
    most = std::max({most, std::fabs(slope(x)), x > 0 ? std::fabs(polynomial(x) / x) : 0.0});
    for (const double y : s) {
      if (x != y) most = std::max(most, std::fabs((polynomial(x) - polynomial(y)) / (x - y)));
      if (x + y > 0) most = std::max(most, std::fabs((polynomial(x) + polynomial(y)) / (x + y)));
    }
  }
  return most;
}

struct Iterated {
  Dense x;
  double error;  // of the Frobenius norm
};
// One iteration of a wide x, and what its roundings add: r of each result as it is stored, products of k
// terms k units of the sum of the terms' magnitudes.
inline Iterated iterate(const Iterated& from, double r) {
  const Dense& x = from.x;
  const Dense gram = times(x, transposed(x)), cubic = times(gram, gram), mixed = sum(b, gram, c, cubic),
              product = times(mixed, x);
  const std::vector<double> s = singular_values(x);
  const double side = static_cast<double>(x.rows), inner = static_cast<double>(x.columns), largest = s.back();
  const double of_gram = inner * unit * norm(x) * norm(x) + r * norm(gram),
               of_cubic =
                   2 * largest * largest * of_gram + side * unit * norm(gram) * norm(gram) + r * norm(cubic),
               of_mixed = std::fabs(b) * of_gram + c * of_cubic +
                          2 * unit * (std::fabs(b) * norm(gram) + c * norm(cubic)) + r * norm(mixed),
               of_product = largest * of_mixed + side * unit * norm(mixed) * norm(x) + r * norm(product);
  const Dense next = sum(a, x, 1, product);
  return {next,
          growth(s) * from.error + of_product + 2 * unit * (a * norm(x) + norm(product)) + r * norm(next)};
}

}  // namespace octet::test
