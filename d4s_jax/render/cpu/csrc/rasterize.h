// Drawing all views, and the gradient, on the threads that `Parallel` has.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "splats.h"

namespace d4s {

// Inputs and outputs have a leading axis of views; see the handlers for their shapes.
struct Views {
  Splats splats;  // of the first view; `count` is that of every view
  Image image;
  int64_t views;
  int64_t capacity;

  Splats view(int64_t index) const;
  int64_t pixels() const { return static_cast<int64_t>(image.height) * image.width; }
};

// What a drawing leaves for its backward pass; null pointers where none will come.
struct Traces {
  float* transmittance;
  int32_t* last;
};

void draw(const Views& views, const Parallel& parallel, int threads, float* layers,
          const Traces& traces, int32_t* overflow);

// Pointers to gradients, laid out as the inputs.
struct Gradients {
  float *means, *conics, *depths, *opacities, *colours;
};

// Equal inputs give equal bits, whatever the number of threads: every intersection has its own
// place for its share, and a splat's shares are added in one order.
void transpose(const Views& views, const Parallel& parallel, int threads, const Traces& traces,
               const float* layers_gradient, const Gradients& gradients);

}  // namespace d4s
