// Every numerics header in device code: this file only has to compile (tests/CMakeLists.txt).
#include "base/random.h"
#include "numerics/adaptive_scaling.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/moments.h"
#include "numerics/recipe.h"
#include "numerics/recipes.h"
#include "numerics/scaling.h"
#include "numerics/small_float.h"

using namespace octet;

__global__ void use_everything(float* x, uint8_t* codes, DelayedScaling delayed, AdaptiveScaling adaptive,
                               Cast cast, uint64_t key) {
  for (const Format f : {Format::E4M3, Format::E5M2}) {
    const float value = round_to_bfloat16(x[threadIdx.x] * scale_for(cast.rule, x[0], max_of(f)));
    codes[0] = encode(f, value);
    codes[1] = encode_stochastic(f, value, random_bits(key, threadIdx.x));
    const MomentScale s = moment_scale(f, max_magnitude(x[0], x[1]));
    codes[2] = encode_moment(f, Moment::Second, value, s.scale);
    x[1] = decode(f, codes[0]) + decode_moment(f, codes[2], s.inverse);
  }
  x[1] += fine_scale(cast, x[0]) + to_float(to_small_float(bits_of({8, 3}), to_bfloat16(x[1])));
  x[2] = delayed_scale(delayed, cast, AmaxHistory{x, 1, 0}, x[2]);
  x[3] = adaptive_scale(adaptive, cast, CastsOfStep{x[0], key, key / 2, key / 3}, x[3]);
}
