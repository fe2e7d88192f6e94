// AdamW against the oracle (fixtures/oracle_adamw): twenty steps in float64, five steps with FP8 moments bit
// for bit.
#include "catch.h"
#include "optimizer/optimizer.h"
#include "oracle_fixture.h"

using namespace octet;
using namespace octet::oracle;

namespace {

struct Setup {
  ParameterKind kind = ParameterKind::Matrix;
  double weight_decay = 0;
  Moments moments{Format::FP32, Format::FP32, 128};
};

// One tensor under AdamW on the CPU device.
class Trained {
 public:
  Trained(const std::string& name, const Setup& setup) : name_(name) {
    MemoryPlan measured;
    build(setup, measured);
    arena_ = device_->allocate(measured.peak_bytes());
    MemoryPlan placed(arena_, measured.peak_bytes());
    build(setup, placed);
    const std::vector<float> master = fixture_.floats(name + ".master");
    device_->copy_from_host(parameters_[0].master.data, master.data(), parameters_[0].master.bytes());
    gradients_ = fixture_.floats(name + ".gradients");
  }
  ~Trained() {
    optimizer_.reset();
    device_->free(arena_);
  }

  void step(int64_t t) {
    const size_t n = static_cast<size_t>(parameters_[0].master.elements());
    const float scale = description_["gradient_scale"][static_cast<size_t>(t - 1)];
    std::vector<float> gradient(
        n);  // the scale is a power of two: multiplying here or in the update is the same
    for (size_t i = 0; i < n; ++i) gradient[i] = scale * gradients_[static_cast<size_t>(t - 1) * n + i];
    device_->copy_from_host(parameters_[0].gradient.data, gradient.data(), n * sizeof(float));
    const double zero = 0;
    device_->copy_from_host(loss_.data, &zero, sizeof zero);
    optimizer_->step(parameters_, description_["learning_rate"][static_cast<size_t>(t - 1)], t, loss_, 1.0);
  }
  Values values(const Tensor& t) { return decode_all(t.dtype, bytes(t).data(), t.elements()); }
  std::vector<uint8_t> bytes(const Tensor& t) {
    std::vector<uint8_t> out(t.bytes());
    device_->copy_to_host(out.data(), t.data, out.size());
    return out;
  }
  Values master() { return values(parameters_[0].master); }
  Optimizer::State& state() { return optimizer_->states()[0]; }
  Values expected(const std::string& what) const { return fixture_.values(name_ + "." + what); }
  std::vector<uint8_t> expected_bytes(const std::string& what) const {
    return fixture_.bytes(name_ + "." + what);
  }

 private:
  void build(const Setup& setup, MemoryPlan& plan) {
    const Shape shape = fixture_.shape(name_ + ".master");
    Parameter parameter;
    parameter.name = name_;
    parameter.kind = setup.kind;
    parameter.master = plan.add("master", Category::Masters, DType::F32, shape);
    parameter.gradient = plan.add("gradient", Category::Gradients, DType::F32, shape);
    loss_ = plan.add("loss", Category::Other, DType::F64, {1});
    parameters_ = {parameter};
    OptimizerOptions options;
    options.beta1 = description_["beta1"];
    options.beta2 = description_["beta2"];
    options.epsilon = description_["epsilon"];
    options.weight_decay = setup.weight_decay;
    options.clip_norm = 0;
    optimizer_ = std::make_unique<Optimizer>(device_.get(), options, Optimizer::States{setup.moments},
                                             parameters_, plan);
  }

  std::string name_;
  Fixture fixture_{"adamw"};
  nlohmann::json description_ = description("adamw");
  std::unique_ptr<Device> device_ = make_cpu_device({true, 1});
  void* arena_ = nullptr;
  std::vector<Parameter> parameters_;
  Tensor loss_;
  std::vector<float> gradients_;
  std::unique_ptr<Optimizer> optimizer_;
};

Values difference(const Values& a, const Values& b) {
  Values out(a.size());
  for (size_t i = 0; i < a.size(); ++i) out[i] = a[i] - b[i];
  return out;
}

// A step rounds the master three times (decay, update, sum), so twenty steps leave an error of about
// sqrt(60 / 3) * 2^-24 = 2.7e-7 of it; 1e-6 is the acceptance threshold. A moment rounds thrice a step and
// forgets with 0.9 or 0.95: sqrt(60) * 2^-24 = 4.6e-7, and v doubles the error of g.
constexpr double master_bound = 1e-6, moment_bound = 1e-6;

}  // namespace

TEST_CASE("oracle: twenty AdamW steps with FP32 moments", "[oracle]") {
  struct Case {
    const char *tensor, *series;
    Setup setup;
  };
  const Case cases[] = {
      {"matrix", "decay", {ParameterKind::Matrix, 0.1}},
      {"matrix", "plain", {ParameterKind::Matrix, 0.0}},
      {"vector", "decay", {ParameterKind::Embedding, 0.1}},
      {"vector", "plain", {ParameterKind::Vector, 0.1}},  // gains and biases never decay
  };
  for (const Case& c : cases) {
    const std::string series = c.series, other = series == "decay" ? "plain" : "decay";
    Trained trained(c.tensor, c.setup);
    const Values start = trained.master();
    for (int64_t t = 1; t <= 20; ++t) {
      trained.step(t);
      if (t != 1 && t != 2 && t != 5 && t != 10 && t != 20) continue;
      INFO(c.tensor << " " << c.series << " step " << t);
      const std::string name = ".step" + std::to_string(t) + ".master";
      const Values expected = trained.expected(series + name);
      CHECK(relative_error(trained.master(), expected) <= master_bound);
      // The change alone, which is some hundred times smaller than the master at step 1.
      CHECK(relative_error(difference(trained.master(), start), difference(expected, start)) <=
            200 * master_bound);
      // Negative control: decay is seen from the first step on.
      CHECK(relative_error(trained.master(), trained.expected(other + name)) > 10 * master_bound);
    }
    CHECK(relative_error(trained.values(trained.state().first.values), trained.expected(series + ".first")) <=
          moment_bound);
    CHECK(relative_error(trained.values(trained.state().second.values),
                         trained.expected(series + ".second")) <= 2 * moment_bound);
  }
}

TEST_CASE("oracle: FP8 moments are the oracle's codes, bit for bit", "[oracle]") {
  // The data has no value within 16 * 2^-24 of a tie, so any correct order of the FP32 operations gives these
  // codes. It has an element whose v only the floor keeps above zero, and one whose v is zero.
  for (const std::string name : {"matrix", "vector"}) {
    Trained trained(name, {ParameterKind::Matrix, 0.1, Moments{Format::E4M3, Format::E5M2, 128}});
    for (int64_t t = 1; t <= 5; ++t) {
      trained.step(t);
      INFO(name << " step " << t);
      const std::string step = "float8.step" + std::to_string(t);
      const Optimizer::State& state = trained.state();
      REQUIRE(state.first.values.dtype == DType::E4M3);
      REQUIRE(state.second.values.dtype == DType::E5M2);
      const std::vector<uint8_t> second = trained.bytes(state.second.values);
      CHECK(trained.bytes(state.first.values) == trained.expected_bytes(step + ".first"));
      CHECK(second == trained.expected_bytes(step + ".second"));
      CHECK(second[5] == 1);
      CHECK(second[7] == 0);
      // max / amax and its inverse: two roundings, of an amax of a few.
      CHECK(relative_error(trained.values(state.first.inverse), trained.expected(step + ".first_inverse")) <=
            8 * 0x1p-24);
      CHECK(relative_error(trained.values(state.second.inverse),
                           trained.expected(step + ".second_inverse")) <= 8 * 0x1p-24);
      CHECK(relative_error(trained.master(), trained.expected(step + ".master")) <= master_bound);
    }
    // Negative control: codes in place of exact moments are seen in the master.
    CHECK(relative_error(trained.master(), trained.expected("decay.step5.master")) > 10 * master_bound);
  }
}
