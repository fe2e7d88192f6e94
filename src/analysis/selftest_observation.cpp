// The cases of octet selftest of what the health monitor looks at.
#include <fmt/format.h>

#include "analysis/selftest_cases.h"

namespace octet::selftest {
namespace {

void statistics(Workbench& w, const Tensor& x, const InverseScales& scales) {
  TensorStatistics op = statistics_of(x);
  op.inverse_scales = scales;
  op.first = 16;
  op.columns = x.columns() - 17;
  op.context = x.rows() / 3;
  op.row_sums = w.zeros(DType::F64, {3 * x.rows()});
  op.sums = w.zeros(DType::F64, {4});
  op.extremes = w.zeros(DType::U32, {2});
  w.device().tensor_statistics(op);
  w.output("sums", op.sums);
  w.output("extremes", op.extremes);
}

}  // namespace

void add_observation(std::vector<SelftestCase>& cases) {
  constexpr int64_t rows = 18;
  for (const int64_t columns : {int64_t{40}, int64_t{1003}}) {
    const std::string shape = fmt::format("{} x {}", rows, columns);
    const int64_t n = rows * columns;
    for (const DType storage : {DType::F32, DType::BF16}) {
      cases.push_back({"tensor statistics", with_storage(storage, shape), 0, [=](Workbench& w) {
                         statistics(w, w.floats(storage, {rows, columns}, hard(n, 1)), {});
                       }});
      cases.push_back({"channel amax", with_storage(storage, shape), 0, [=](Workbench& w) {
                         const Tensor amax = w.zeros(DType::F32, {columns});
                         w.device().channel_amax({w.floats(storage, {rows, columns}, hard(n, 1)), amax});
                         w.output("amax", amax);
                       }});
      cases.push_back(
          {"row cosines", with_storage(storage, shape), 0, [=](Workbench& w) {
             const Tensor cosines = w.zeros(DType::F32, {rows / 2});
             w.device().row_cosines({w.floats(storage, {rows, columns}, hard(n, 1)), {}, cosines});
             w.output("cosines", cosines);
           }});
    }
    for (const Format format : {Format::E4M3, Format::E5M2}) {
      const DType type = dtype_of(format);
      cases.push_back(
          {"cast error", fmt::format("BF16 to {}, {}", name_of(type), shape), 0, [=](Workbench& w) {
             CastOperation cast{w.floats(DType::BF16, {rows, columns}, hard(n, 1)), {}, {}};
             cast.out.row = w.zeros(type, {rows, columns});
             cast.out.cast = {.format = format};
             float* const site = w.zeros(DType::F32, {3}).as<float>();
             cast.out.site = {site, site + 1, site + 2, nullptr};
             w.device().cast(cast);
             const InverseScales scales{site + 1};
             const Tensor sums = w.zeros(DType::F64, {2});
             w.device().cast_error(
                 {cast.source, cast.out.row, scales, w.zeros(DType::F64, {2 * rows}), sums});
             w.output("sums", sums);
             statistics(w, cast.out.row, scales);
           }});
    }
  }
}

}  // namespace octet::selftest
