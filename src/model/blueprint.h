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
  int64_t tokens() const { return options.micro_batch * options.spec.context; }
};

}  // namespace octet
