// What the health monitor looks at.
#include "kernels/observation.h"
#include "device/gpu/gpu_device.h"

namespace octet {
inline namespace OCTET_GPU {
namespace {

kernels::ObservedValues observed(const Tensor& x, const InverseScales& scales) {
  return {.values = x.data,
          .format = format_of(x),
          .rows = x.rows(),
          .width = x.columns(),
          .inverse_scales = scales};
}

}  // namespace

void GpuDevice::tensor_statistics(const TensorStatistics& op) {
  check(op);
  kernels::tensor_statistics({.x = observed(op.x, op.inverse_scales),
                              .first = op.first,
                              .columns = op.columns,
                              .context = op.context,
                              .row_sums = op.row_sums.as<double>(),
                              .sums = op.sums.as<double>(),
                              .extremes = op.extremes.as<uint32_t>(),
                              .stream = backend_->stream()});
}

void GpuDevice::channel_amax(const ChannelAmax& op) {
  check(op);
  kernels::channel_amax({.x = op.x.data,
                         .storage = format_of(op.x),
                         .rows = op.x.rows(),
                         .columns = op.x.columns(),
                         .amax = op.amax.as<float>(),
                         .stream = backend_->stream()});
}

void GpuDevice::row_cosines(const RowCosines& op) {
  check(op);
  kernels::row_cosines({.x = observed(op.x, op.inverse_scales),
                        .cosines = op.cosines.as<float>(),
                        .stream = backend_->stream()});
}

void GpuDevice::cast_error(const CastError& op) {
  check(op);
  kernels::cast_error({.source = op.source.data,
                       .storage = format_of(op.source),
                       .codes = observed(op.codes, op.inverse_scales),
                       .row_sums = op.row_sums.as<double>(),
                       .sums = op.sums.as<double>(),
                       .stream = backend_->stream()});
}

}  // namespace OCTET_GPU
}  // namespace octet
