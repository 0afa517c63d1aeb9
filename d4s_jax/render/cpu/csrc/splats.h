// The nouns shared by the CPU rasterizer's files, and its limits.
//
// A view's splats are packed front to back into rows of one cache line; tiles list the rows that
// touch them. Nothing here depends on XLA: `handlers.cc` alone does, and tests/render/cpu builds
// the rest into a program that sanitizers watch.
#pragma once

#include <cstdint>

namespace d4s {

constexpr int kTileWidth = 32, kTileHeight = 16;
// Red, green, blue, depth and 1, summed with the weights of alpha compositing.
constexpr int kLayers = 5;
// Gradient of one splat: x, y, conic (3), opacity, red, green, blue, depth.
constexpr int kParameters = 10;

// render/projection.py has the same numbers and says what they mean.
constexpr float kMinAlpha = 1.0f / 255.0f, kMaxAlpha = 0.999f, kMinTransmittance = 1e-4f;

// Inputs of one view: pointers to [n, 2], [n, 3], [n, 2], [n], [n] and [n, 3] floats.
struct Splats {
  const float *means, *conics, *extents, *depths, *opacities, *colours;
  int64_t count;
};

// One splat as the inner loops read it.
struct alignas(64) Row {
  float x, y, a, b, c, opacity;
  // sigma up to which the splat counts, log(opacity / kMinAlpha); no pixel further than
  // `half_height` above or below the centre has that little.
  float reach, half_height;
  float red, green, blue, depth;
  // Index among the view's splats.
  int32_t index;
  // Its tiles: the first, how many columns and rows, and the intersections before its own.
  int16_t column, row, columns, rows;
  int32_t start;
};
static_assert(sizeof(Row) == 64, "a cache line");

// One tile: where it is, and its rows.
struct Tile {
  int column, row;
  const Row* rows;
  const int32_t* list;
  int64_t count;
};

struct Image {
  int height, width;
  int tile_columns() const { return (width + kTileWidth - 1) / kTileWidth; }
  int tile_rows() const { return (height + kTileHeight - 1) / kTileHeight; }
};

}  // namespace d4s
