#include "binning.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace d4s {
namespace {

struct Box {
  int left, top, right, bottom;  // tiles, inclusive
};

float clamp(float x, float low, float high) { return std::min(std::max(x, low), high); }

// Tiles that hold a pixel centre within the splat's extent; false where none does.
bool touched(const float* mean, const float* extent, const Image& image, Box* box) {
  const float width = image.width, height = image.height;
  // Pixel i has its centre at i + 0.5; the limits keep the conversion to integers in range.
  const float left = clamp(std::ceil(mean[0] - extent[0] - 0.5f), 0, width);
  const float top = clamp(std::ceil(mean[1] - extent[1] - 0.5f), 0, height);
  const float right = clamp(std::floor(mean[0] + extent[0] - 0.5f), -1, width - 1);
  const float bottom = clamp(std::floor(mean[1] + extent[1] - 0.5f), -1, height - 1);
  if (!(left <= right && top <= bottom)) return false;
  *box = {static_cast<int>(left) / kTileWidth, static_cast<int>(top) / kTileHeight,
          static_cast<int>(right) / kTileWidth, static_cast<int>(bottom) / kTileHeight};
  return true;
}

bool usable(const Splats& splats, int64_t i) {
  const float* conic = splats.conics + 3 * i;
  const float* colour = splats.colours + 3 * i;
  const float numbers[] = {splats.means[2 * i], splats.means[2 * i + 1], conic[1],  colour[0],
                           colour[1],           colour[2],               splats.opacities[i]};
  for (float number : numbers) {
    if (!std::isfinite(number)) return false;
  }
  return splats.extents[2 * i] > 0 && splats.extents[2 * i + 1] > 0 && splats.depths[i] > 0 &&
         std::isfinite(splats.depths[i]) && conic[0] > 0 && std::isfinite(conic[0]) &&
         conic[2] > 0 && std::isfinite(conic[2]) && splats.opacities[i] >= kMinAlpha;
}

struct Key {
  uint32_t depth;
  int32_t index;
};

// Radix sort by depth, ties by index: positive floats order like their bit patterns.
void sort_by_depth(std::vector<Key>& keys) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  std::vector<Key> other(keys.size());
  for (int shift = 0; shift < 32; shift += kBits) {
    int64_t starts[kBuckets + 1] = {};
    for (const Key& key : keys) starts[((key.depth >> shift) & (kBuckets - 1)) + 1]++;
    for (int b = 0; b < kBuckets; b++) starts[b + 1] += starts[b];
    for (const Key& key : keys) other[starts[(key.depth >> shift) & (kBuckets - 1)]++] = key;
    keys.swap(other);
  }
}

Row pack(const Splats& splats, int64_t i, const Box& box, int64_t start) {
  Row row;
  row.x = splats.means[2 * i];
  row.y = splats.means[2 * i + 1];
  row.a = splats.conics[3 * i];
  row.b = splats.conics[3 * i + 1];
  row.c = splats.conics[3 * i + 2];
  row.opacity = splats.opacities[i];
  // Nobody has opacities of 1e32, but the kernels' exponential would not end well with them.
  row.reach = std::min(std::log(row.opacity / kMinAlpha), 80.0f);
  row.red = splats.colours[3 * i];
  row.green = splats.colours[3 * i + 1];
  row.blue = splats.colours[3 * i + 2];
  row.depth = splats.depths[i];
  row.index = static_cast<int32_t>(i);
  row.column = static_cast<int16_t>(box.left);
  row.row = static_cast<int16_t>(box.top);
  row.columns = static_cast<int16_t>(box.right - box.left + 1);
  row.rows = static_cast<int16_t>(box.bottom - box.top + 1);
  row.start = start;
  return row;
}

}  // namespace

Bins bin(const Splats& splats, const Image& image, int64_t capacity) {
  std::vector<Key> keys;
  keys.reserve(splats.count);
  Box box;
  for (int64_t i = 0; i < splats.count; i++) {
    if (!usable(splats, i)) continue;
    if (!touched(splats.means + 2 * i, splats.extents + 2 * i, image, &box)) continue;
    Key key{0, static_cast<int32_t>(i)};
    std::memcpy(&key.depth, splats.depths + i, sizeof key.depth);
    keys.push_back(key);
  }
  sort_by_depth(keys);

  Bins bins;
  const int columns = image.tile_columns();
  const int64_t tiles = static_cast<int64_t>(columns) * image.tile_rows();
  bins.rows.reserve(keys.size());
  bins.starts.assign(tiles + 1, 0);
  int64_t total = 0;
  for (const Key& key : keys) {
    touched(splats.means + 2 * key.index, splats.extents + 2 * key.index, image, &box);
    const Row row = pack(splats, key.index, box, total);
    for (int r = box.top; r <= box.bottom && total < capacity; r++) {
      for (int c = box.left; c <= box.right && total < capacity; c++, total++) {
        bins.starts[static_cast<int64_t>(r) * columns + c + 1]++;
      }
    }
    const int64_t all = static_cast<int64_t>(row.columns) * row.rows;
    bins.overflow += row.start + all - total;
    if (total > row.start) bins.rows.push_back(row);
  }
  bins.kept = total;
  for (int64_t t = 0; t < tiles; t++) bins.starts[t + 1] += bins.starts[t];

  bins.lists.resize(total);
  std::vector<int64_t> next(bins.starts.begin(), bins.starts.end() - 1);
  for (size_t i = 0; i < bins.rows.size(); i++) {
    const Row& row = bins.rows[i];
    int64_t left = total - row.start;
    for (int r = row.row; r < row.row + row.rows && left > 0; r++) {
      for (int c = row.column; c < row.column + row.columns && left > 0; c++, left--) {
        bins.lists[next[static_cast<int64_t>(r) * columns + c]++] = static_cast<int32_t>(i);
      }
    }
  }
  return bins;
}

}  // namespace d4s
