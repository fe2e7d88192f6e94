#include "training/health_rules.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "catch.h"

using namespace octet;

namespace {

constexpr int64_t warmup = 100;

// A healthy run of four blocks at `step`.
Health calm(int64_t step) {
  Health health;
  for (int b = 0; b < 4; ++b) {
    for (const char* role : {"ffn.down.input", "ffn.down.grad"}) {
      SiteHealth site;
      site.name = fmt::format("blocks.{}.{}", b, role);
      site.block = b;
      site.cast.format = role[9] == 'i' ? Format::E4M3 : Format::E5M2;
      site.cast.scaling = Scaling::Delayed;
      site.amax = 3;
      site.scale = 128;
      site.snr = ideal_snr(site.cast.format) - 1;
      site.saturated = 1e-5;
      site.flushed = 0.01;
      health.sites.push_back(site);
    }
    BlockHealth block;
    const double growth = std::log(static_cast<double>(step));
    for (TensorHealth& tensor : block.tensors) tensor = {3 + growth, 3 + growth, 0, 1 + growth, 4, 5};
    block.log_sum_exp = 5 + growth;
    block.channel = 3;
    block.channel_amax = 40;
    block.channel_median = 4;
    block.neuron = 9;
    block.cosine = 0.5;
    block.neuron_amax = 8;
    health.blocks.push_back(block);
  }
  health.weights.push_back({"head.weight", 0.02 * std::sqrt(static_cast<double>(step))});
  health.weights.push_back({"blocks.2.attention.qkv.weight", 0.02});
  for (WeightHealth& weight : health.weights) weight.update_rms = 1 + 0.1 * std::sin(step);
  return health;
}

using Change = std::function<void(int64_t step, Health&)>;
struct Warned {
  int64_t step;
  HealthWarning warning;
};
std::vector<Warned> run(const Change& change, int64_t steps = 4000, HealthRules rules = HealthRules(warmup)) {
  std::vector<Warned> all;
  for (int64_t step = 20; step <= steps; step += 20) {
    Health health = calm(step);
    change(step, health);
    for (HealthWarning& w : rules.judge(step, health)) all.push_back({step, std::move(w)});
  }
  return all;
}
std::vector<std::string> as_text(const std::vector<Warned>& warned) {
  std::vector<std::string> lines;
  for (const Warned& w : warned) lines.push_back(fmt::format("{} {}", w.step, w.warning.message));
  return lines;
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a healthy run gives no warning") {
  CHECK(run([](int64_t, Health&) {}).empty());
}

TEST_CASE("each rule warns once, of what is wrong, with layer, number and remedy") {
  struct Expected {
    const char* rule;
    const char* subject;
    int64_t block, earliest, latest;
    const char* number;
    const char* remedy;
    Change change;
  };
  const auto from = [](int64_t first, const Change& change) {
    return [first, change](int64_t step, Health& health) {
      if (step >= first) change(step, health);
    };
  };
  const Expected all[] = {
      {"saturation", "blocks.2.ffn.down.input", 2, 1000, 1000, "1.2 %", "margin",
       from(1000, [](int64_t, Health& h) { h.sites[4].saturated = 0.012; })},
      {"flushing", "blocks.1.ffn.down.grad", 1, 1000, 1000, "12 %", "BF16",
       from(1000, [](int64_t, Health& h) { h.sites[3].flushed = 0.12; })},
      {"signal_to_noise", "blocks.0.ffn.down.input", 0, 1000, 1000, "20.0 dB", "finer scale",
       from(1000, [](int64_t, Health& h) { h.sites[0].snr = 20; })},
      {"not_finite", "blocks.1.key", 1, 1000, 1000, "block 1: key", "learning rate",
       from(1000,
            [](int64_t, Health& h) {
              h.blocks[1].of(Observed::Key).amax = INFINITY;
              h.blocks[1].of(Observed::FfnHidden).amax = NAN;
              h.blocks[2].of(Observed::Qkv).amax = NAN;
            })},
      {"attention_logits", "blocks.3.log_sum_exp", 3, 1000, 1000, "60.0", "QK norm",
       from(1000, [](int64_t step,
                     Health& h) { h.blocks[3].log_sum_exp = 60 + 0.01 * static_cast<double>(step - 1000); })},
      {"alignment", "blocks.2.ffn.neuron.17", 2, 1000, 1000, "neuron 17", "smooth_swiglu",
       from(1000,
            [](int64_t, Health& h) {
              h.blocks[2].neuron = 17;
              h.blocks[2].cosine = -0.97;
              h.blocks[2].neuron_amax = 1e4;
            })},
      {"update_rms", "blocks.2.attention.qkv.weight", 2, 1000, 1000, "3.1 times", "update_clipping",
       from(1000, [](int64_t, Health& h) { h.weights[1].update_rms = 3.1; })},
      {"kurtosis_growth", "blocks.1.qkv", 1, 500, 1500, "qkv grows as step^", "QK norm",
       [](int64_t step, Health& h) {
         h.blocks[1].of(Observed::Qkv).kurtosis = 3 + std::pow(static_cast<double>(step) / 100, 1.5);
       }},
      {"residual_growth", "blocks.3.block_output", 3, 500, 1500, "RMS", "weight decay",
       [](int64_t step, Health& h) {
         h.blocks[3].of(Observed::BlockOutput).rms = 1 + std::exp(static_cast<double>(step) / 200);
       }},
  };
  for (const Expected& e : all) {
    const std::vector<Warned> warned = run(e.change);
    INFO(e.rule << ": " << warned.size());
    REQUIRE(warned.size() == 1);
    const auto& [step, w] = warned[0];
    INFO(w.message);
    CHECK(w.rule == e.rule);
    CHECK(w.subject == e.subject);
    CHECK(w.block == e.block);
    CHECK(step >= e.earliest);
    CHECK(step <= e.latest);
    CHECK(contains(w.message, fmt::format("{}", e.block)));
    CHECK(contains(w.message, e.number));
    CHECK(contains(w.message, e.remedy));
    CHECK_FALSE(contains(w.message, "\n"));
  }
}

TEST_CASE("what is only half of a reason gives no warning") {
  CHECK(run([](int64_t, Health& h) { h.blocks[0].cosine = 0.99; }).empty());      // aligned, not an outlier
  CHECK(run([](int64_t, Health& h) { h.blocks[0].neuron_amax = 1e5; }).empty());  // an outlier, not aligned
  CHECK(run([](int64_t, Health& h) {
          h.blocks[0].neuron = -1;  // no gate
          h.blocks[0].cosine = 1, h.blocks[0].neuron_amax = 1e5;
        }).empty());
  CHECK(run([](int64_t, Health& h) { h.blocks[0].log_sum_exp = 90; }).empty());  // high, but it does not grow
  CHECK(run([](int64_t step, Health& h) {
          h.blocks[0].of(Observed::Qkv).kurtosis = 3 * std::sqrt(static_cast<double>(step));
        }).empty());
  CHECK(run([](int64_t, Health& h) {  // no codes, or not observed
          h.sites[0].snr = unknown;
          h.blocks.clear();
          h.weights.clear();
        })
            .empty());
}

TEST_CASE("what a scale saturates or flushes on purpose gives no warning, four times as much does") {
  const AdaptiveScaling adaptive{.above = 0.01, .saturated = 0.02, .flushed = 0.1};
  const auto warned = [&](Scaling scaling, double saturated, double flushed, double utilisation = 10) {
    const Change change = [=](int64_t, Health& h) {
      h.sites[0].cast.scaling = scaling;
      h.sites[0].saturated = saturated;
      h.sites[0].flushed = flushed;
      h.sites[0].utilisation = utilisation;
    };
    std::vector<std::string> rules;
    for (const Warned& w : run(change, 100, HealthRules(warmup, {.adaptive = adaptive})))
      rules.push_back(w.warning.rule);
    return rules;
  };
  using Rules = std::vector<std::string>;
  CHECK(warned(Scaling::Quantile, 0.039, 0.04).empty());
  CHECK(warned(Scaling::Quantile, 0.041, 0.06) == Rules{"saturation", "flushing"});
  CHECK(warned(Scaling::Quantile, 0.2, 0.04, 1.2).empty());  // many, but hardly beyond
  CHECK(warned(Scaling::Quantile, 0.2, 0.04, 1.3) == Rules{"saturation"});
  CHECK(warned(Scaling::Following, 0.079, 0.39).empty());
  CHECK(warned(Scaling::Following, 0.081, 0.41) == Rules{"saturation", "flushing"});
  CHECK(warned(Scaling::Delayed, 0.039, 0.06) == Rules{"saturation", "flushing"});  // the control
}

TEST_CASE("a warning comes again only after its reason has been gone for three records") {
  const auto warned = [](int64_t gap) {
    std::vector<int64_t> steps;
    for (const Warned& w : run([gap](int64_t step, Health&h) {
           if (step >= 1000 && (step < 2000 || step >= 2000 + 20 * gap)) h.sites[0].saturated = 0.5;
         }))
      steps.push_back(w.step);
    return steps;
  };
  CHECK(warned(2) == std::vector<int64_t>{1000});
  CHECK(warned(3) == std::vector<int64_t>{1000, 2060});
}

TEST_CASE("growth of weights is over the first record") {
  HealthRules rules(warmup);
  Health first = calm(100), later = calm(400);
  rules.judge(100, first);
  rules.judge(400, later);
  CHECK(first.weights[0].growth == 1.0);
  CHECK(std::abs(later.weights[0].growth - 2) < 1e-12);
}

TEST_CASE("rules that are written and read warn as if they had never stopped") {
  const Change trouble = [](int64_t step, Health& h) {
    const double t = static_cast<double>(step);
    h.blocks[1].of(Observed::Qkv).kurtosis = 3 + std::pow(t / 100, 1.5);
    if (step >= 300 && step % 400 < 200) h.sites[1].flushed = 0.5;
    if (step >= 600) h.blocks[0].log_sum_exp = t / 10;
  };
  const std::vector<Warned> whole = run(trouble, 2000);
  REQUIRE(whole.size() >= 5);
  for (int64_t stop = 20; stop < 2000; stop += 140) {
    HealthRules rules(warmup), forgetful(warmup);
    std::vector<Warned> parts, without_memory;
    for (int64_t step = 20; step <= 2000; step += 20) {
      Health health = calm(step), same = health;
      trouble(step, health);
      trouble(step, same);
      for (HealthWarning& w : rules.judge(step, health)) parts.push_back({step, std::move(w)});
      for (HealthWarning& w : forgetful.judge(step, same)) without_memory.push_back({step, std::move(w)});
      if (step != stop) continue;
      HealthRules resumed(warmup);
      resumed.restore(Json::parse(rules.state().dump()));
      CHECK(resumed.state().dump() == rules.state().dump());
      rules = resumed;
      forgetful = HealthRules(warmup);
    }
    CHECK(as_text(parts) == as_text(whole));
    // The control: memory matters, but for the very last record.
    if (stop > 600 && stop < 1900) CHECK(as_text(without_memory) != as_text(whole));
  }
}
