// XLA FFI handler that lists the splats of each tile front to back, in arrays of static size.
//
// gsplat counts the intersections of splats and tiles on the device, copies the total to the host
// and allocates that much. XLA has to know all sizes beforehand, and waiting for the host costs
// more than drawing. So every view has room for `capacity` intersections:
//
//   1. the splats of each view are sorted by depth, ties by index;
//   2. gsplat's kernel counts the tiles of each; a running sum says which of them fit. The nearest
//      are kept, the others lose their radius and are counted in `overflow`;
//   3. gsplat's kernel writes a key (view, tile, depth) for each intersection, in that order;
//   4. a stable sort by view and tile leaves each tile's splats front to back;
//   5. gsplat's kernel finds where each tile starts.
//
// Slots that remain free are given to a row of tiles below the image, at the end of each view.
// Shapes: v views, n splats of each view, rows x columns of tiles in the image.
#include <cooperative_groups.h>

#include <cub/cub.cuh>
#include <limits>

#include "arrays.h"

// These want Tensor to be declared.
#include "Common.h"
#include "Intersect.h"

namespace gsplat_ffi {
namespace {

constexpr int kThreads = 256;
// A key is view | tile | bits of the depth.
constexpr int kDepthBits = 32;

// This thread's number in the launch.
__device__ int64_t Index() {
  return static_cast<int64_t>(cooperative_groups::this_grid().thread_rank());
}

__global__ void DepthKeys(int64_t count, int64_t n, const float* depths, int64_t* keys,
                          int32_t* ids) {
  const int64_t i = Index();
  if (i >= count) return;
  // Depths are not negative, and such floats order like their bits.
  const int64_t depth = __float_as_uint(depths[i]);
  keys[i] = (i / n) << kDepthBits | depth;
  ids[i] = static_cast<int32_t>(i);
}

__global__ void Reorder(int64_t count, const int32_t* order, const float* means,
                        const int32_t* radii, float* ordered_means, int32_t* ordered_radii) {
  const int64_t i = Index();
  if (i >= count) return;
  const int64_t from = order[i];
  for (int axis = 0; axis < 2; ++axis) {
    ordered_means[2 * i + axis] = means[2 * from + axis];
    ordered_radii[2 * i + axis] = radii[2 * from + axis];
  }
}

__global__ void Widen(int64_t count, const int32_t* narrow, int64_t* wide) {
  const int64_t i = Index();
  if (i < count) wide[i] = narrow[i];
}

// Where a view's intersections begin in the running sum.
__device__ int64_t Start(const int64_t* ends, int64_t view, int64_t n) {
  return view == 0 ? 0 : ends[view * n - 1];
}

// Takes the radius from what does not fit. gsplat's kernel writes splat i from slot
// slot_ends[i - 1] on, so that the last one of a view has to end where the next view begins.
__global__ void Place(int64_t count, int64_t n, int64_t capacity, const int64_t* ends,
                      int64_t* slot_ends, int32_t* radii) {
  const int64_t i = Index();
  if (i >= count) return;
  const int64_t view = i / n;
  const int64_t end = ends[i] - Start(ends, view, n);
  const bool last = i % n == n - 1;
  slot_ends[i] = view * capacity + (last || end > capacity ? capacity : end);
  if (end > capacity) radii[2 * i] = radii[2 * i + 1] = 0;
}

__global__ void CountOverflow(int64_t views, int64_t n, int64_t capacity, const int64_t* ends,
                              int32_t* overflow) {
  const int64_t view = Index();
  if (view >= views) return;
  const int64_t start = Start(ends, view, n);
  // The first splat that does not fit, by bisection.
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ends[view * n + middle] - start <= capacity) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t kept = low == 0 ? 0 : ends[view * n + low - 1] - start;
  const int64_t lost = ends[view * n + n - 1] - start - kept;
  const int64_t most = std::numeric_limits<int32_t>::max();
  overflow[view] = static_cast<int32_t>(lost < most ? lost : most);
}

// Fills all slots with pads, behind the `tiles` of the image.
__global__ void Pad(int64_t slots, int64_t capacity, int64_t tiles, int tile_bits, int64_t* keys,
                    int32_t* ranks) {
  const int64_t i = Index();
  if (i >= slots) return;
  keys[i] = (i / capacity) << (kDepthBits + tile_bits) | tiles << kDepthBits;
  ranks[i] = 0;
}

// From ranks in depth to splats; and from keys with the tiles of the image, which are all that
// gsplat writes, to keys that have room for one row of tiles more, as its offsets need them.
__global__ void Finish(int64_t slots, const int32_t* order, const int32_t* ranks, int tile_bits,
                       int wider_tile_bits, int64_t* keys, int32_t* splats) {
  const int64_t i = Index();
  if (i >= slots) return;
  splats[i] = order[ranks[i]];
  const int64_t place = keys[i] >> kDepthBits;
  const int64_t tile = place & ((int64_t{1} << tile_bits) - 1);
  keys[i] = (place >> tile_bits << wider_tile_bits | tile) << kDepthBits;
}

// One thread for each of `count` things.
template <class Kernel, class... Arguments>
void ForEach(Kernel kernel, int64_t count, Arguments... arguments) {
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  kernel<<<blocks, kThreads, 0, Current().stream()>>>(count, arguments...);
  Check(cudaGetLastError(), "kernel of the tile lists");
}

// Sorts by some bits of the keys, stably; returns the sorted keys and values.
struct Sorted {
  int64_t* keys;
  int32_t* values;
};

Sorted Sort(int64_t count, int64_t* keys, int32_t* values, int first_bit, int end_bit) {
  cub::DoubleBuffer<int64_t> key_buffers(keys, Scratch<int64_t>(count));
  cub::DoubleBuffer<int32_t> value_buffers(values, Scratch<int32_t>(count));
  size_t bytes = 0;
  const auto sort = [&](void* memory) {
    Check(cub::DeviceRadixSort::SortPairs(memory, bytes, key_buffers, value_buffers, count,
                                          first_bit, end_bit, Current().stream()),
          "sort");
  };
  sort(nullptr);
  sort(Scratch<char>(bytes));
  return {key_buffers.Current(), value_buffers.Current()};
}

int64_t* RunningSum(int64_t count, const int32_t* numbers) {
  // cub adds in the type of its input, and totals may pass 2^31.
  int64_t* wide = Scratch<int64_t>(count);
  ForEach(Widen, count, numbers, wide);
  int64_t* sums = Scratch<int64_t>(count);
  size_t bytes = 0;
  const auto scan = [&](void* memory) {
    Check(cub::DeviceScan::InclusiveSum(memory, bytes, wide, sums, count, Current().stream()),
          "running sum");
  };
  scan(nullptr);
  scan(Scratch<char>(bytes));
  return sums;
}

// As gsplat counts them: floor(log2(number)) + 1.
int BitsFor(int64_t number) {
  int bits = 0;
  for (; number > 0; number >>= 1) ++bits;
  return bits;
}

ffi::Error Intersect(Resources resources, Floats means2d, Ints radii, Floats depths,
                     IntsOut splats, IntsOut starts, IntsOut overflow, int32_t tile) {
  return Run("intersect", resources, [&] {
    Expect(depths.dimensions().size() == 2, "depths to have shape [v n]");
    const int64_t v = depths.dimensions()[0], n = depths.dimensions()[1], count = v * n;
    Expect(v > 0, "at least one view");
    ExpectShape("means2d", means2d, {v, n, 2});
    ExpectShape("radii", radii, {v, n, 2});
    ExpectShape("overflow", *overflow, {v});
    Expect(starts->dimensions().size() == 3 && starts->dimensions()[0] == v,
           "starts to have shape [v rows+1 columns]");
    const int64_t rows = starts->dimensions()[1] - 1, columns = starts->dimensions()[2];
    const int64_t tiles = rows * columns;
    const int64_t slots = splats->element_count(), capacity = slots / v;
    Expect(capacity > 0 && capacity * v == slots, "the same number of slots for each view");
    const int tile_bits = BitsFor(tiles), wider_tile_bits = BitsFor(tiles + columns);
    const int view_bits = BitsFor(v);
    // The last bit is the sign.
    Expect(view_bits + wider_tile_bits < 32,
           "fewer views or tiles: a sort key has 31 bits for both");

    int64_t* depth_keys = Scratch<int64_t>(count);
    int32_t* ids = Scratch<int32_t>(count);
    ForEach(DepthKeys, count, n, depths.typed_data(), depth_keys, ids);
    const int32_t* order = Sort(count, depth_keys, ids, 0, kDepthBits + view_bits).values;
    const at::Tensor ordered_means(Scratch<float>(2 * count), {v, n, 2});
    const at::Tensor ordered_radii(Scratch<int32_t>(2 * count), {v, n, 2});
    ForEach(Reorder, count, order, means2d.typed_data(), radii.typed_data(),
            ordered_means.data_ptr<float>(), ordered_radii.data_ptr<int32_t>());

    // gsplat writes its keys' depths from here: of other splats, but this sort does not look.
    const at::Tensor any_depths = AsTensor(depths);
    const auto gsplat_pass = [&](at::optional<at::Tensor> slot_ends,
                                 at::optional<at::Tensor> counts, at::optional<at::Tensor> keys,
                                 at::optional<at::Tensor> ranks) {
      gsplat::launch_intersect_tile_kernel(ordered_means, ordered_radii, any_depths, std::nullopt,
                                           std::nullopt, v, tile, columns, rows, slot_ends, counts,
                                           keys, ranks);
      Check(cudaGetLastError(), "gsplat's intersection");
    };
    const at::Tensor counts(Scratch<int32_t>(count), {v, n});
    gsplat_pass(std::nullopt, counts, std::nullopt, std::nullopt);
    const int64_t* ends = RunningSum(count, counts.data_ptr<int32_t>());
    ForEach(CountOverflow, v, n, capacity, ends, overflow->typed_data());
    const at::Tensor slot_ends(Scratch<int64_t>(count), {v, n});
    ForEach(Place, count, n, capacity, ends, slot_ends.data_ptr<int64_t>(),
            ordered_radii.data_ptr<int32_t>());

    const at::Tensor keys(Scratch<int64_t>(slots), {slots});
    const at::Tensor ranks(Scratch<int32_t>(slots), {slots});
    ForEach(Pad, slots, capacity, tiles, tile_bits, keys.data_ptr<int64_t>(),
            ranks.data_ptr<int32_t>());
    gsplat_pass(slot_ends, std::nullopt, keys, ranks);
    const Sorted sorted = Sort(slots, keys.data_ptr<int64_t>(), ranks.data_ptr<int32_t>(),
                               kDepthBits, kDepthBits + tile_bits + view_bits);
    ForEach(Finish, slots, order, sorted.values, tile_bits, wider_tile_bits, sorted.keys,
            splats->typed_data());
    gsplat::launch_intersect_offset_kernel(at::Tensor(sorted.keys, {slots}), v, columns, rows + 1,
                                           AsTensor(starts));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GsplatIntersect, Intersect,
                              ffi::Ffi::Bind()
                                  .Ctx<Resources>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Ret<Ints>()
                                  .Ret<Ints>()
                                  .Ret<Ints>()
                                  .Attr<int32_t>("tile"));

}  // namespace gsplat_ffi
