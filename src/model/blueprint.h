// What the parts of a model are built from: handed down while a Transformer is constructed.
#pragma once
#include <cstdint>
#include <string>

#include "model/parameters.h"
#include "model/rope.h"
#include "model/transformer.h"

namespace octet {

struct Blueprint {
  const TransformerOptions& options;
  MemoryPlan& plan;
  ParameterList& parameters;
  ScaleTable& scales;
  RopeTable rope;

  const TransformerSpec& spec() const { return options.spec; }
  DType storage() const { return dtype_of(options.recipe.storage); }
  // Of the residual stream's gradient when training begins, with parametrization "unit": that of a token's
  // logits has length 1/tokens (one class of many is right, none is likely yet), and the head, of deviation
  // 1/width, spreads it over the stream.  [docs/numerics.md, "Static scales"]
  double gradient_deviation() const {
    const int64_t of_batch = options.batch_tokens > 0 ? options.batch_tokens : tokens();
    return spec().head_deviation() / static_cast<double>(of_batch);
  }
  int64_t tokens() const { return options.micro_batch * options.spec.context; }
};

}  // namespace octet
