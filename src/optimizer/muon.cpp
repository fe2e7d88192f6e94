#include "optimizer/muon.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "numerics/muon.h"
#include "numerics/sums.h"

namespace octet {

namespace {

struct Matrix {
  int64_t begin, rows, columns;  // its first row in the parameter
  int64_t elements() const { return rows * columns; }
  int64_t smaller() const { return std::min(rows, columns); }
};

std::vector<Matrix> matrices_of(const Parameter& parameter) {
  const Shape& shape = parameter.gradient.shape;
  if (parameter.matrices.empty()) return {{0, shape[0], shape[1]}};
  std::vector<Matrix> matrices;
  int64_t begin = 0;
  for (const int64_t rows : parameter.matrices) {
    matrices.push_back({begin, rows, shape[1]});
    begin += rows;
  }
  if (begin != shape[0])
    throw Error(ExitCode::Internal, fmt::format("{}: matrices of {} rows together in a parameter of {}",
                                                parameter.name, begin, shape[0]));
  return matrices;
}

// One iteration's products of x [rows, columns]. `gram` and `cubic` are square and symmetric, `product` is as
// x: gram = X X^T, cubic = gram gram, product = gram X; of more rows than columns from the other side,
// gram = X^T X, product = X gram.
struct Iteration {
  Matmul gram, cubic, product;
};
Iteration iteration(const Tensor& x, const Tensor& gram, const Tensor& cubic, const Tensor& product) {
  const bool tall = x.rows() > x.columns();
  const Operand side{x, tall}, symmetric{gram};
  Iteration i;
  i.gram = {.a = side, .b = side, .out = gram};
  i.cubic = {.a = symmetric, .b = symmetric, .out = cubic};
  i.product = tall ? Matmul{.a = {x}, .b = symmetric, .out = product}
                   : Matmul{.a = symmetric, .b = {x, true}, .out = product};
  for (Matmul* matmul : {&i.gram, &i.cubic, &i.product}) matmul->gemm_class = GemmClass::Muon;
  return i;
}

}  // namespace

Muon::Muon(Device* device, const Options& options, std::span<const Parameter> parameters, MemoryPlan& plan)
    : device_(device), options_(options) {
  int64_t parameter = 0, matrix = 0, side = 0;
  for (const Parameter& p : parameters) {
    if (p.kind != ParameterKind::Matrix) continue;
    if (p.shard > 0)
      throw Error(
          ExitCode::Usage,
          fmt::format("{}: its elements are divided among ranks, Muon needs the whole matrix", p.name),
          "set parallel.zero to 0, or optimizer.name to adamw");
    parameter = std::max(parameter, p.master.elements());
    for (const Matrix& m : matrices_of(p)) {
      matrix = std::max(matrix, m.elements());
      side = std::max(side, m.smaller());
    }
  }
  const auto scratch = [&](const char* name, DType type, int64_t elements) {
    return plan.add(name, Category::Scratch, type, {elements});
  };
  direction_ = scratch("muon.direction", options.storage, parameter);
  product_ = scratch("muon.product", options.storage, matrix);
  gram_ = scratch("muon.gram", options.storage, side * side);
  cubic_ = scratch("muon.cubic", options.storage, side * side);
  partials_ = scratch("muon.norm_partials", DType::F64, norm_pieces(matrix));
}

void Muon::update(const Parameter& parameter, const OptimizerState& state, const MuonUpdate& step) const {
  Tensor direction = direction_.slice(0, parameter.master.elements());
  device_->muon_momentum({.gradient = parameter.step_gradient(),
                          .first = state.first,
                          .direction = direction,
                          .momentum = options_.momentum,
                          .control = step.control});
  direction.shape = parameter.gradient.shape;
  for (const Matrix& matrix : matrices_of(parameter))
    orthogonalise(direction.slice(matrix.begin, matrix.rows));
  MuonUpdate update = step;
  update.direction = direction.flat();
  device_->muon_update(update);
}

void Muon::orthogonalise(const Tensor& x) const {
  const int64_t n = std::min(x.rows(), x.columns());
  Tensor gram = gram_.slice(0, n * n), cubic = cubic_.slice(0, n * n),
         product = product_.slice(0, x.elements());
  gram.shape = cubic.shape = {n, n};
  product.shape = x.shape;
  const Tensor partials = partials_.slice(0, norm_pieces(x.elements()));
  device_->gradient_squares({x.flat(), partials});
  device_->normalize({x, partials});
  const Iteration products = iteration(x, gram, cubic, product);
  const float scale = muon_scale(static_cast<double>(x.rows()), static_cast<double>(x.columns()));
  for (int step = 1; step <= options_.steps; ++step) {
    const float last = step == options_.steps ? scale : 1.0f;
    device_->matmul(products.gram);
    device_->matmul(products.cubic);
    device_->weighted_sum({gram, cubic, gram, NewtonSchulz::b, NewtonSchulz::c});
    device_->matmul(products.product);
    device_->weighted_sum({x, product, x, last * NewtonSchulz::a, last});
  }
}

std::vector<Matmul> muon_products(std::span<const Parameter> parameters, DType storage) {
  std::vector<Matmul> products;
  for (const Parameter& p : parameters) {
    if (p.kind != ParameterKind::Matrix) continue;
    for (const Matrix& m : matrices_of(p)) {
      const Tensor x{nullptr, storage, {m.rows, m.columns}},
          square{nullptr, storage, {m.smaller(), m.smaller()}};
      const Iteration one = iteration(x, square, square, x);
      for (const Matmul& matmul : {one.gram, one.cubic, one.product}) products.push_back(matmul);
    }
  }
  return products;
}

}  // namespace octet
