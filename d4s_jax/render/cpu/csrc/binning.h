// Which splats of a view touch which tile, front to back.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"
#include "splats.h"

namespace d4s {

struct Bins {
  std::vector<Row> rows;
  // Tile t's rows are lists[starts[t]] to lists[starts[t + 1] - 1].
  std::vector<int32_t> lists;
  std::vector<int64_t> starts;
  // Intersections that `capacity` kept, and those it did not.
  int64_t kept = 0, overflow = 0;

  Tile tile(const Image& image, int64_t index) const {
    const int columns = image.tile_columns();
    return {static_cast<int>(index % columns), static_cast<int>(index / columns), rows.data(),
            lists.data() + starts[index], starts[index + 1] - starts[index]};
  }
};

// Sorts and lists the splats of a view whose extents are positive. Of more than `capacity`
// intersections the farthest splats' are dropped. A splat with a number that is not finite, which
// `projection.project` never makes, is left out.
Bins bin(const Splats& splats, const Image& image, int64_t capacity, const Parallel& parallel,
         int threads);

}  // namespace d4s
