// Drawing one tile and its transpose, in one variant for each instruction set.
#pragma once

#include "splats.h"

namespace d4s {

// What a drawing leaves for its backward pass, for every pixel of a view: the transmittance behind
// the last splat that was drawn, and that splat's place in its tile's list (-1 without any).
struct Trace {
  float* transmittance;
  int32_t* last;
};

// Writes the layers [h, w, 5] of a tile's pixels, and their trace unless its pointers are null.
using DrawTile = void (*)(const Tile&, const Image&, float* layers, const Trace&);

// Writes, for each splat of the tile, its share of the gradient to partial[intersection * 10].
using TransposeTile = void (*)(const Tile&, const Image&, const Trace&, const float* gradient,
                               float* partial);

struct Kernels {
  const char* name;
  DrawTile draw;
  TransposeTile transpose;
};

// The fastest variant that this processor runs.
const Kernels& kernels();

namespace baseline {
extern const Kernels kKernels;
}
#ifdef D4S_HAS_X86_64_V3
namespace x86_64_v3 {
extern const Kernels kKernels;
}
#endif

}  // namespace d4s
