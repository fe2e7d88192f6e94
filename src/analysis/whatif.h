// `octet whatif`: what other recipes would make of the tensors of a checkpoint, without training.
//
// For each recipe the checkpoint's weights are cast as it says, one micro-batch goes forward and backward,
// and every cast on the way is held against the tensor it was made from: by a device in front of the device
// (device/observed_device.h), so what is measured is the very cast that training would run. What earlier
// casts of a recipe did to a later tensor is part of the answer. Delayed scales come from the checkpoint when
// it was made with that recipe, else from another micro-batch before.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "training/metrics.h"

namespace octet {

struct WhatIfRequest {
  std::filesystem::path checkpoint;    // one, or a run's folder: its newest
  std::vector<std::string> recipes;    // "fp8", "fp8:scaling=delayed:smooth_swiglu=none"
  std::vector<std::string> overrides;  // of the configuration in the checkpoint
  std::vector<std::string> data;       // as octet sharpness has it
  std::string device = "auto";
};

// What a cast kept of its tensor x, whose codes stand for y.
struct CastQuality {
  double signal = 0, noise = 0;  // sums of x^2, (x - y)^2
  int64_t elements = 0, saturated = 0,
          flushed = 0;  // flushed: x != 0, y = 0; saturated: |x| beyond the codes
  double snr() const;   // dB; infinite without noise
  double saturated_share() const;
  double flushed_share() const;
};
struct WhatIfSite {
  std::string name;  // of the scale table: "blocks.3.ffn.down.input"; of a copy for wgrad with scales of its
                     // own also "blocks.3.ffn.down.input (column)"
  int block = 0;
  CastQuality quality;
};
struct WhatIfRecipe {
  std::string name;
  double loss = 0;  // of the micro-batch
  std::vector<WhatIfSite> sites;
};
struct WhatIf {
  int64_t step = 0, tokens = 0;
  std::vector<WhatIfRecipe> recipes;
};

// "fp8:scaling=delayed" as overrides of a configuration. Error(Usage) for an empty word.
std::vector<std::string> overrides_of_recipe(const std::string& text);

WhatIf what_if(const WhatIfRequest& request);
// Sites of all blocks together ("ffn.down.input"): the median over blocks, and the worst; or each one.
enum class Detail : uint8_t { Roles, Sites };
std::string table(const WhatIf& result, Detail detail);
Json to_json(const WhatIf& result);

}  // namespace octet
