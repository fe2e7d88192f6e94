// The cases of octet selftest for the optimizer: AdamW and Muon with moments and masters in every format, and
// the mean square of an update.
#include <fmt/format.h>

#include <cmath>

#include "analysis/selftest_cases.h"
#include "numerics/masters.h"
#include "numerics/sums.h"

namespace octet::selftest {

namespace {

struct MomentFormats {
  DType first, second;
  int block;
  bool expanded = false;
};

MomentTensor moment(Workbench& w, DType type, const MomentFormats& m, int64_t n) {
  MomentTensor tensor;
  tensor.values = w.zeros(type, {n});
  tensor.block = m.block;
  const Shape scales{m.block == 0 ? 1 : (n + m.block - 1) / m.block};
  if (type != DType::F32 && type != DType::BF16) tensor.inverse = w.zeros(DType::F32, scales);
  if (size_of(type) == 1 && m.expanded) tensor.exponents = w.zeros(DType::U8, scales);
  return tensor;
}
void output(Workbench& w, const std::string& name, const MomentTensor& m) {
  w.output(name, m.values);
  if (!m.inverse.empty()) w.output(name + " scales", m.inverse);
  if (!m.exponents.empty()) w.output(name + " exponents", m.exponents);
}

struct Masters {
  Tensor values;
  MasterCode code;
};
Masters masters(Workbench& w, MasterFormat format, int64_t n) {
  Masters m{w.zeros(values_dtype(format), {n}), {format, {}, {}}};
  if (format == MasterFormat::BF16Remainder) m.code.rest = w.zeros(DType::U16, {n});
  if (format == MasterFormat::BF16Kahan) m.code.rest = w.zeros(DType::BF16, {n});
  if (format == MasterFormat::FP16Scaled)
    m.code.inverse = w.zeros(DType::F32, {(n + master_block - 1) / master_block});
  w.device().write_masters({w.floats(DType::F32, {n}, normal(n, 1)), m.values, m.code});
  return m;
}
void output(Workbench& w, const Masters& m) {
  w.output("master", m.values);
  if (!m.code.rest.empty()) w.output("master rest", m.code.rest);
  if (!m.code.inverse.empty()) w.output("master scales", m.code.inverse);
}

const UpdateControl* control(Workbench& w, uint32_t apply) {
  const UpdateControl values{1, 0.5f, 1, apply, 0};
  return static_cast<const UpdateControl*>(w.bytes(DType::U32, {5}, &values).data);
}

struct Update {
  MomentFormats moments;
  DType gradient = DType::F32;
  uint32_t apply = 1;
  MasterFormat master = MasterFormat::FP32;
  float rms = 0;  // 0: no update clipping
};

void three_steps(Workbench& w, const Update& update) {
  constexpr int64_t n = 1000;
  const Masters master = masters(w, update.master, n);
  AdamWUpdate op{};
  op.master = master.values;
  op.master_code = master.code;
  op.first = moment(w, update.moments.first, update.moments, n);
  op.second = moment(w, update.moments.second, update.moments, n);
  op.learning_rate = 1e-2f;
  op.beta1 = 0.9f;
  op.beta2 = 0.95f;
  op.epsilon = 1e-8f;
  op.weight_decay = 0.1f;
  op.control = control(w, update.apply);
  op.amax = w.zeros(DType::F32, {1});
  op.rounding_key = 11;
  op.first_element = 256;
  if (update.rms > 0) op.update_rms = w.floats(DType::F32, {1}, {update.rms});
  for (op.step = 1; op.step <= 3; ++op.step) {
    op.gradient = w.floats(update.gradient, {n}, hard(n, static_cast<uint64_t>(op.step)));
    w.device().adamw(op);
  }
  output(w, master);
  w.output("amax", op.amax);
  output(w, "first", op.first);
  output(w, "second", op.second);
}

void mean_square(Workbench& w, const MomentFormats& m, int64_t n) {
  const Tensor rms = w.zeros(DType::F32, {1}), partials = w.zeros(DType::F64, {norm_pieces(n)});
  w.device().update_squares({.gradient = w.floats(DType::F32, {n}, hard(n, 3)),
                             .second = moment(w, m.second, m, n),
                             .beta2 = 0.95f,
                             .epsilon = 1e-8f,
                             .step = 2,
                             .control = control(w, 1),
                             .partials = partials});
  w.device().update_rms({partials, n, rms});
  w.output("partials", partials);
  w.output("rms", rms);
}

void read_back(Workbench& w, MasterFormat format) {
  constexpr int64_t n = 1001;
  const Masters m = masters(w, format, n);
  output(w, m);
  for (const DType type : {DType::F32, DType::BF16}) {
    const Tensor values = w.zeros(type, {n});
    w.device().read_masters({m.values, m.code, values});
    w.output(octet::name_of(type), values);
  }
}

struct MuonStep {
  MomentFormats moments;
  DType gradient = DType::F32, storage = DType::BF16;
  uint32_t apply = 1;
  MasterFormat master = MasterFormat::FP32;
};

// Two steps of Muon's operations, its products left out.
void muon_steps(Workbench& w, const MuonStep& step) {
  constexpr int64_t n = 1000;
  const Masters master = masters(w, step.master, n);
  const MomentTensor first = moment(w, step.moments.first, step.moments, n);
  const Tensor direction = w.zeros(step.storage, {n}), partials = w.zeros(DType::F64, {norm_pieces(n)}),
               amax = w.zeros(DType::F32, {1});
  const UpdateControl* const decided = control(w, step.apply);
  for (uint64_t t = 1; t <= 2; ++t) {
    w.device().muon_momentum({w.floats(step.gradient, {n}, hard(n, t)), first, direction, 0.95f, decided});
    w.device().gradient_squares({direction, partials});
    w.device().normalize({direction, partials});
    w.device().weighted_sum(
        {direction, w.floats(step.storage, {n}, normal(n, 7)), direction, 3.4445f, -4.775f});
    w.device().muon_update({.master = master.values,
                            .master_code = master.code,
                            .direction = direction,
                            .learning_rate = 1e-2f,
                            .weight_decay = 0.1f,
                            .control = decided,
                            .amax = amax,
                            .rounding_key = 11 + t,
                            .first_element = 256});
  }
  output(w, master);
  output(w, "first", first);
  w.output("direction", direction);
  w.output("amax", amax);
}

const MasterFormat master_formats[] = {MasterFormat::BF16Remainder, MasterFormat::BF16Kahan,
                                       MasterFormat::BF16Stochastic, MasterFormat::BF16Nearest,
                                       MasterFormat::FP16Scaled};
const char* name_of(MasterFormat format) {
  constexpr const char* names[] = {
      "FP32", "BF16 and remainder", "BF16 compensated", "BF16 stochastic", "BF16 nearest", "FP16 scaled"};
  return names[static_cast<size_t>(format)];
}

}  // namespace

void add_optimizer(std::vector<SelftestCase>& cases) {
  const MomentFormats moments[] = {{DType::F32, DType::F32, 128},       {DType::BF16, DType::BF16, 128},
                                   {DType::E4M3, DType::E5M2, 128},     {DType::E4M3, DType::E4M3, 32},
                                   {DType::E4M3, DType::E5M2, 0},       {DType::E4M3, DType::F16, 128},
                                   {DType::F16, DType::F16, 0},         {DType::E4M3, DType::E4M3, 128, true},
                                   {DType::E5M2, DType::E4M3, 64, true}};
  const auto name = [](const MomentFormats& m) {
    return fmt::format("{} {} block {}{}", octet::name_of(m.first), octet::name_of(m.second), m.block,
                       m.expanded ? " expanded" : "");
  };
  for (const MomentFormats& m : moments)
    for (const DType gradient : {DType::F32, DType::BF16})
      for (const uint32_t apply : {1u, 0u})
        cases.push_back({"adamw",
                         fmt::format("{} gradient, moments {}{}", octet::name_of(gradient), name(m),
                                     apply ? ", 3 steps" : ", step refused"),
                         0, [=](Workbench& w) {
                           three_steps(w, {m, gradient, apply});
                         }});
  for (const MasterFormat master : master_formats)
    for (const int block : {128, 64})
      cases.push_back({"adamw", fmt::format("master {}, moments in blocks of {}", name_of(master), block), 0,
                       [=](Workbench& w) {
                         three_steps(w, {{DType::E4M3, DType::E5M2, block}, DType::F32, 1, master});
                       }});
  cases.push_back({"adamw", "clipped by its update's mean square", 0, [](Workbench& w) {
                     three_steps(w, {{DType::E4M3, DType::E5M2, 128}, DType::F32, 1, MasterFormat::FP32, 3});
                   }});
  for (const MomentFormats& m : moments)
    for (const DType storage : {DType::F32, DType::BF16})
      for (const uint32_t apply : {1u, 0u})
        cases.push_back({"muon",
                         fmt::format("momentum {} block {}{}, direction {}{}", octet::name_of(m.first),
                                     m.block, m.expanded ? " expanded" : "", octet::name_of(storage),
                                     apply ? "" : ", step refused"),
                         0, [=](Workbench& w) {
                           muon_steps(w, {m, storage, storage, apply});
                         }});
  for (const MasterFormat master : master_formats)
    cases.push_back({"muon", fmt::format("master {}", name_of(master)), 0, [=](Workbench& w) {
                       muon_steps(w, {{DType::E4M3, DType::F32, 128}, DType::F32, DType::BF16, 1, master});
                     }});
  for (const MasterFormat master : master_formats)
    cases.push_back({"masters", fmt::format("{} to FP32 and BF16", name_of(master)), 0,
                     [=](Workbench& w) { read_back(w, master); }});
  for (const MomentFormats& m : moments)
    for (const int64_t n : {int64_t{77}, int64_t{20003}})
      cases.push_back({"update mean square", fmt::format("second moment {}, {}", name(m), n), 0,
                       [=](Workbench& w) { mean_square(w, m, n); }});
}

}  // namespace octet::selftest
