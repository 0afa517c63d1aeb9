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

int64_t tiles_of(const Row& row) { return static_cast<int64_t>(row.columns) * row.rows; }

Row pack(const Splats& splats, int64_t i, const Image& image) {
  Box box;
  touched(splats.means + 2 * i, splats.extents + 2 * i, image, &box);
  Row row;
  row.x = splats.means[2 * i];
  row.y = splats.means[2 * i + 1];
  row.a = splats.conics[3 * i];
  row.b = splats.conics[3 * i + 1];
  row.c = splats.conics[3 * i + 2];
  row.opacity = splats.opacities[i];
  // Nobody has opacities of 1e32, but the kernels' exponential would not end well with them.
  row.half_height = splats.extents[2 * i + 1];
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
  row.start = 0;
  return row;
}

// Calls body(first, last) for parts of [0, count) that together are all of it.
void in_parts(int64_t count, const Parallel& parallel, int64_t parts,
              const std::function<void(int64_t part, int64_t first, int64_t last)>& body) {
  parallel(parts, [&](int64_t part) {
    body(part, part * count / parts, (part + 1) * count / parts);
  });
}

// Indices of the splats that are seen, front to back.
std::vector<Key> front_to_back(const Splats& splats, const Image& image, const Parallel& parallel,
                               int threads) {
  std::vector<std::vector<Key>> parts(threads);
  in_parts(splats.count, parallel, threads, [&](int64_t part, int64_t first, int64_t last) {
    Box box;
    for (int64_t i = first; i < last; i++) {
      if (!usable(splats, i)) continue;
      if (!touched(splats.means + 2 * i, splats.extents + 2 * i, image, &box)) continue;
      Key key{0, static_cast<int32_t>(i)};
      std::memcpy(&key.depth, splats.depths + i, sizeof key.depth);
      parts[part].push_back(key);
    }
  });
  std::vector<Key> keys;
  for (const auto& part : parts) keys.insert(keys.end(), part.begin(), part.end());
  sort_by_depth(keys);
  return keys;
}

// Numbers the intersections and drops the rows that `capacity` has no room for.
void place(std::vector<Row>& rows, int64_t capacity, Bins& bins) {
  int64_t total = 0;
  size_t fitting = 0;
  for (Row& row : rows) {
    if (total < capacity) {
      row.start = static_cast<int32_t>(total);
      fitting++;
    }
    total += tiles_of(row);
  }
  rows.resize(fitting);
  bins.kept = std::min(total, capacity);
  bins.overflow = total - bins.kept;
}

// Calls body(tile, rank) for the intersections in some rows of tiles, front to back.
template <class Body>
void for_intersections(const Bins& bins, int columns, int64_t first_row, int64_t last_row,
                       const Body& body) {
  for (size_t i = 0; i < bins.rows.size(); i++) {
    const Row& row = bins.rows[i];
    const int64_t low = std::max<int64_t>(row.row, first_row);
    const int64_t high = std::min<int64_t>(row.row + row.rows, last_row);
    for (int64_t r = low; r < high; r++) {
      // The last row's intersections may find room in part.
      const int64_t before = row.start + (r - row.row) * row.columns;
      const int64_t room = std::min<int64_t>(row.columns, bins.kept - before);
      for (int64_t c = 0; c < room; c++) body(r * columns + row.column + c, i);
    }
  }
}

}  // namespace

Bins bin(const Splats& splats, const Image& image, int64_t capacity, const Parallel& parallel,
         int threads) {
  const std::vector<Key> keys = front_to_back(splats, image, parallel, threads);
  Bins bins;
  bins.rows.resize(keys.size());
  in_parts(keys.size(), parallel, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) bins.rows[i] = pack(splats, keys[i].index, image);
  });
  place(bins.rows, capacity, bins);

  const int columns = image.tile_columns();
  const int64_t tile_rows = image.tile_rows(), tiles = columns * tile_rows;
  bins.starts.assign(tiles + 1, 0);
  in_parts(tile_rows, parallel, threads, [&](int64_t, int64_t first, int64_t last) {
    for_intersections(bins, columns, first, last,
                      [&](int64_t tile, size_t) { bins.starts[tile + 1]++; });
  });
  for (int64_t t = 0; t < tiles; t++) bins.starts[t + 1] += bins.starts[t];

  bins.lists.resize(bins.kept);
  std::vector<int64_t> next(bins.starts.begin(), bins.starts.end() - 1);
  in_parts(tile_rows, parallel, threads, [&](int64_t, int64_t first, int64_t last) {
    for_intersections(bins, columns, first, last, [&](int64_t tile, size_t rank) {
      bins.lists[next[tile]++] = static_cast<int32_t>(rank);
    });
  });
  return bins;
}

}  // namespace d4s
