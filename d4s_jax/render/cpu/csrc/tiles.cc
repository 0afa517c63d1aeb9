// The inner loops. Compiled once for each instruction set with D4S_VARIANT naming it, so nothing of
// the standard library may be inlined here: the linker would keep one variant's copy for all.
//
// A tile's pixels lie in planes [row][column], each row followed by room for one vector, and splats
// are drawn front to back over the columns of each row that their ellipse reaches, eight pixels at
// a time. Vectors may start at any column and run over the row's end: what they write there is
// never read.
#include "tiles.h"

namespace d4s {
namespace D4S_VARIANT {
namespace {

constexpr int kLanes = 8;
constexpr int kStride = kTileWidth + kLanes;
constexpr int kPlane = kTileHeight * kStride;
// The most vectors that a row of a tile takes.
constexpr int kVectors = kTileWidth / kLanes;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline Ints load(const int32_t* p) {
  Ints v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(int32_t* p, Ints v) { __builtin_memcpy(p, &v, sizeof v); }
inline Floats broadcast(float x) { return Floats{} + x; }
inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
inline float clamp(float x, float low, float high) {
  // NaN becomes `low`.
  x = x > low ? x : low;
  return x < high ? x : high;
}
inline float sum(Floats v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

const Floats kLaneOffsets = {0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f};

// exp(x) for x in [-87, 0], within 2 units in the last place: x = n ln 2 + r, and a polynomial of
// degree 6 on |r| <= ln(2) / 2. Below that range the result means nothing.
inline Floats exponential(Floats x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then is in the low bits.
  const Floats magic = broadcast(12582912.0f);
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = broadcast(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Unsigned, which may wrap: below the range it does.
  Words bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  Words scale = (bits << 23) + (127u << 23);
  Floats power;
  __builtin_memcpy(&power, &scale, sizeof power);
  return p * power;
}

// The vectors of a tile's pixels that a splat reaches, in one list: a loop over it runs without the
// surprises of an inner loop over the columns of each row, whose length the processor can't guess.
struct Reach {
  // The place of a vector's first pixel in the planes, and its row.
  struct Vector {
    int16_t row, column;
  };
  int count;
  Vector vectors[kTileHeight * kVectors + kVectors];
  // Of each row: the distance to the centre, and what of sigma depends on it alone.
  float dy[kTileHeight], linear[kTileHeight], constant[kTileHeight];
};

// Rows are looked at in groups of this many, which the compiler makes vectors of.
constexpr int kRowGroup = 8;

// sigma <= reach is a quadratic inequality in the column; a thousandth of a pixel and a millionth
// of the terms that cancel are allowed for rounding, the pixels themselves are tested exactly.
inline void find_reach(const Row& splat, float left, float top, int width, int height,
                       Reach& reach) {
  const float centre = splat.y - top - 0.5f, half = splat.half_height;
  const int first_row = (int)clamp(centre - half + 0.999f, 0, (float)height);
  const int last_row = (int)clamp(centre + half + 1.001f, 0, (float)height) - 1;
  const float determinant = splat.a * splat.c - splat.b * splat.b;
  const float slack = 1e-6f * splat.a * splat.c;
  const float whole = 2 * splat.a * splat.reach;
  const float inverse = 1 / splat.a;
  const float middle = splat.x - left - 0.5f;
  int32_t first[kTileHeight], last[kTileHeight];
  const int begin = first_row / kRowGroup * kRowGroup;
  for (int group = begin; group <= last_row; group += kRowGroup) {
    for (int i = group; i < group + kRowGroup; i++) {
      const float dy = splat.y - (top + i + 0.5f);
      const float square = whole - (determinant - slack) * dy * dy;
      const float root = __builtin_sqrtf(square > 0 ? square : 0);
      const float low = middle + (splat.b * dy - root) * inverse;
      const float high = middle + (splat.b * dy + root) * inverse;
      const int end = (int)clamp(high + 1.001f, 0, (float)width);
      first[i] = (int)clamp(low + 0.999f, 0, (float)width);
      last[i] = square >= 0 ? end - 1 : -1;
      reach.dy[i] = dy;
      reach.linear[i] = splat.b * dy;
      reach.constant[i] = 0.5f * splat.c * dy * dy;
    }
  }
  int count = 0;
  for (int i = first_row; i <= last_row; i++) {
    // All that a row can have are written, those that it has are counted.
    for (int v = 0; v < kVectors; v++) {
      reach.vectors[count + v] = {(int16_t)i, (int16_t)(first[i] + v * kLanes)};
    }
    const int columns = last[i] - first[i] + 1;
    count += columns > 0 ? (columns + kLanes - 1) / kLanes : 0;
  }
  reach.count = count;
}

// sigma, the opacity at eight pixels of a row, and where it counts.
struct Lanes {
  Floats dx, alpha, faded;
  Ints seen;
};

inline Lanes evaluate(const Row& splat, float first_column, float linear, float constant) {
  Lanes lanes;
  lanes.dx = splat.x - (first_column + kLaneOffsets);
  const Floats sigma = (0.5f * splat.a * lanes.dx + linear) * lanes.dx + constant;
  lanes.seen = (sigma >= 0.0f) & (sigma <= splat.reach);
  lanes.faded = splat.opacity * exponential(-sigma);
  lanes.alpha = minimum(lanes.faded, broadcast(kMaxAlpha));
  return lanes;
}

// A pixel that is finished has its transmittance negated.
struct alignas(64) Canvas {
  float transmittance[kPlane], red[kPlane], green[kPlane], blue[kPlane], depth[kPlane];
  int32_t last[kPlane];
};

template <bool kTraced>
inline void draw_splat(const Row& splat, const Reach& reach, float left, int32_t place,
                       Canvas& canvas) {
  for (int k = 0; k < reach.count; k++) {
    const int row = reach.vectors[k].row, column = reach.vectors[k].column;
    const Lanes lanes =
        evaluate(splat, left + column, reach.linear[row], reach.constant[row]);
    const int at = row * kStride + column;
    const Floats before = load(canvas.transmittance + at);
    const Floats weight = before * lanes.alpha;
    const Floats after = before - weight;
    const Ints live = lanes.seen & (before > 0.0f);
    const Ints drawn = live & (after > kMinTransmittance);
    store(canvas.transmittance + at, drawn ? after : (live ? -before : before));
    const Floats share = drawn ? weight : Floats{};
    store(canvas.red + at, load(canvas.red + at) + share * splat.red);
    store(canvas.green + at, load(canvas.green + at) + share * splat.green);
    store(canvas.blue + at, load(canvas.blue + at) + share * splat.blue);
    store(canvas.depth + at, load(canvas.depth + at) + share * splat.depth);
    if (kTraced) store(canvas.last + at, drawn ? Ints{} + place : load(canvas.last + at));
  }
}

bool all_finished(const Canvas& canvas, int width, int height) {
  for (int i = 0; i < height; i++) {
    for (int j = 0; j < width; j++) {
      if (canvas.transmittance[i * kStride + j] > 0) return false;
    }
  }
  return true;
}

// How many splats are drawn between looks at whether all pixels are finished.
constexpr int64_t kLook = 64;

inline int smaller(int a, int b) { return a < b ? a : b; }

template <bool kTraced>
void draw(const Tile& tile, const Image& image, float* layers, const Trace& trace) {
  const int left = tile.column * kTileWidth, top = tile.row * kTileHeight;
  const int width = smaller(kTileWidth, image.width - left);
  const int height = smaller(kTileHeight, image.height - top);
  Canvas canvas;
  for (int i = 0; i < kPlane; i++) {
    canvas.transmittance[i] = 1;
    canvas.red[i] = canvas.green[i] = canvas.blue[i] = canvas.depth[i] = 0;
    if (kTraced) canvas.last[i] = -1;
  }
  for (int64_t k = 0; k < tile.count; k++) {
    if (k % kLook == kLook - 1 && all_finished(canvas, width, height)) break;
    const Row& splat = tile.rows[tile.list[k]];
    Reach reach;
    find_reach(splat, left, top, width, height, reach);
    draw_splat<kTraced>(splat, reach, left, (int32_t)k, canvas);
  }
  for (int i = 0; i < height; i++) {
    for (int j = 0; j < width; j++) {
      const int at = i * kStride + j;
      const int64_t pixel = (int64_t)(top + i) * image.width + left + j;
      const float rest = canvas.transmittance[at] < 0 ? -canvas.transmittance[at]
                                                      : canvas.transmittance[at];
      float* out = layers + kLayers * pixel;
      out[0] = canvas.red[at];
      out[1] = canvas.green[at];
      out[2] = canvas.blue[at];
      out[3] = canvas.depth[at];
      out[4] = 1 - rest;
      if (kTraced) {
        trace.transmittance[pixel] = rest;
        trace.last[pixel] = canvas.last[at];
      }
    }
  }
}

void draw_tile(const Tile& tile, const Image& image, float* layers, const Trace& trace) {
  if (trace.last) {
    draw<true>(tile, image, layers, trace);
  } else {
    draw<false>(tile, image, layers, trace);
  }
}

// State of the way back: the transmittance behind the splat at hand, what the splats behind it
// contribute to the loss, and the gradient of the layers.
struct alignas(64) Return {
  float transmittance[kPlane], hidden[kPlane];
  float red[kPlane], green[kPlane], blue[kPlane], depth[kPlane], alpha[kPlane];
  int32_t last[kPlane];
};

// With w_k = T_k alpha_k the weights and g_k the gradient of the layers along splat k's values,
// d/d alpha_k = T_k g_k - (sum of w_i g_i behind k) / (1 - alpha_k). From the gradient of sigma
// those of centre and conic follow by its moments over the pixels.
inline void transpose_splat(const Row& splat, const Reach& reach, float left, int32_t place,
                            Return& state, float* out) {
  Floats red{}, green{}, blue{}, depth{};
  Floats one{}, x{}, y{}, xx{}, xy{}, yy{};
  for (int k = 0; k < reach.count; k++) {
    const int row = reach.vectors[k].row, column = reach.vectors[k].column;
    const Lanes lanes =
        evaluate(splat, left + column, reach.linear[row], reach.constant[row]);
    const int at = row * kStride + column;
    const Ints drawn = lanes.seen & (place <= load(state.last + at));
    const Floats inverse = 1.0f / (1.0f - lanes.alpha);
    const Floats behind = load(state.transmittance + at);
    const Floats before = behind * inverse;
    const Floats weight = drawn ? before * lanes.alpha : Floats{};
    const Floats g_red = load(state.red + at), g_green = load(state.green + at);
    const Floats g_blue = load(state.blue + at), g_depth = load(state.depth + at);
    const Floats along = splat.red * g_red + splat.green * g_green + splat.blue * g_blue +
                         splat.depth * g_depth + load(state.alpha + at);
    const Floats hidden = load(state.hidden + at);
    const Floats g_alpha = before * along - hidden * inverse;
    store(state.transmittance + at, drawn ? before : behind);
    store(state.hidden + at, hidden + weight * along);
    red += weight * g_red;
    green += weight * g_green;
    blue += weight * g_blue;
    depth += weight * g_depth;
    // The cap on alpha stops the gradient.
    const Ints moves = drawn & (lanes.faded < kMaxAlpha);
    const Floats g_sigma = moves ? -lanes.alpha * g_alpha : Floats{};
    const Floats g_x = g_sigma * lanes.dx, g_y = g_sigma * reach.dy[row];
    one += g_sigma;
    x += g_x;
    y += g_y;
    xx += g_x * lanes.dx;
    xy += g_x * reach.dy[row];
    yy += g_y * reach.dy[row];
  }
  const float s_x = sum(x), s_y = sum(y);
  out[0] = splat.a * s_x + splat.b * s_y;
  out[1] = splat.b * s_x + splat.c * s_y;
  out[2] = 0.5f * sum(xx);
  out[3] = sum(xy);
  out[4] = 0.5f * sum(yy);
  out[5] = -sum(one) / splat.opacity;
  out[6] = sum(red);
  out[7] = sum(green);
  out[8] = sum(blue);
  out[9] = sum(depth);
}

void transpose_tile(const Tile& tile, const Image& image, const Trace& trace,
                    const float* gradient, float* partial) {
  const int left = tile.column * kTileWidth, top = tile.row * kTileHeight;
  const int width = smaller(kTileWidth, image.width - left);
  const int height = smaller(kTileHeight, image.height - top);
  Return state;
  int32_t deepest = -1;
  for (int i = 0; i < kTileHeight; i++) {
    for (int j = 0; j < kStride; j++) {
      const int at = i * kStride + j;
      const bool inside = i < height && j < width;
      const int64_t pixel = inside ? (int64_t)(top + i) * image.width + left + j : 0;
      const float* g = gradient + kLayers * pixel;
      state.transmittance[at] = inside ? trace.transmittance[pixel] : 1;
      state.last[at] = inside ? trace.last[pixel] : -1;
      state.hidden[at] = 0;
      state.red[at] = inside ? g[0] : 0;
      state.green[at] = inside ? g[1] : 0;
      state.blue[at] = inside ? g[2] : 0;
      state.depth[at] = inside ? g[3] : 0;
      state.alpha[at] = inside ? g[4] : 0;
      deepest = state.last[at] > deepest ? state.last[at] : deepest;
    }
  }
  for (int64_t k = tile.count - 1; k >= 0; k--) {
    const Row& splat = tile.rows[tile.list[k]];
    const int64_t local =
        (int64_t)(tile.row - splat.row) * splat.columns + (tile.column - splat.column);
    float* out = partial + kParameters * (splat.start + local);
    if (k > deepest) {
      for (int i = 0; i < kParameters; i++) out[i] = 0;
      continue;
    }
    Reach reach;
    find_reach(splat, left, top, width, height, reach);
    transpose_splat(splat, reach, left, (int32_t)k, state, out);
  }
}

}  // namespace

extern const Kernels kKernels;
#define D4S_TEXT(x) #x
#define D4S_NAME(x) D4S_TEXT(x)
const Kernels kKernels = {D4S_NAME(D4S_VARIANT), draw_tile, transpose_tile};

}  // namespace D4S_VARIANT
}  // namespace d4s
