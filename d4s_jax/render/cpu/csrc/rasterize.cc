#include "rasterize.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "binning.h"
#include "tiles.h"

namespace d4s {
namespace {

// Splats whose shares are added by one call.
constexpr int64_t kRowsPerCall = 4096;

Trace trace_of_view(const Traces& traces, int64_t first_pixel) {
  if (!traces.last) return {nullptr, nullptr};
  return {traces.transmittance + first_pixel, traces.last + first_pixel};
}

// Lists some views in parallel, then hands all their tiles to `on_tile` in parallel. Views are
// taken a few at a time: their lists are what memory goes to.
void for_views(const Views& views, const Parallel& parallel, int threads,
               const std::function<void(int64_t view, Bins&)>& on_bins,
               const std::function<void(int64_t view, Bins&, int64_t tile)>& on_tile,
               const std::function<void(int64_t view, Bins&)>& at_end) {
  const int64_t tiles =
      static_cast<int64_t>(views.image.tile_columns()) * views.image.tile_rows();
  const int64_t group = std::max<int64_t>(1, threads);
  for (int64_t first = 0; first < views.views; first += group) {
    const int64_t count = std::min(group, views.views - first);
    std::vector<Bins> bins(count);
    // A thread for each view, or all of them for the only one.
    const bool alone = count < threads;
    const Parallel over_views = alone ? Parallel(one_after_the_other) : parallel;
    over_views(count, [&](int64_t i) {
      const Splats splats = views.view(first + i);
      bins[i] = alone ? bin(splats, views.image, views.capacity, parallel, threads)
                      : bin(splats, views.image, views.capacity, one_after_the_other, 1);
      on_bins(first + i, bins[i]);
    });
    parallel(count * tiles, [&](int64_t i) {
      on_tile(first + i / tiles, bins[i / tiles], i % tiles);
    });
    for (int64_t i = 0; i < count; i++) at_end(first + i, bins[i]);
  }
}

// Adds up a splat's shares, which lie together.
void gather(const Row& row, int64_t kept, const float* partial, int64_t view,
            const Views& views, const Gradients& gradients) {
  float total[kParameters] = {};
  const int64_t end = std::min(row.start + static_cast<int64_t>(row.columns) * row.rows, kept);
  for (int64_t k = row.start; k < end; k++) {
    for (int i = 0; i < kParameters; i++) total[i] += partial[k * kParameters + i];
  }
  const int64_t at = view * views.splats.count + row.index;
  std::copy(total, total + 2, gradients.means + 2 * at);
  std::copy(total + 2, total + 5, gradients.conics + 3 * at);
  gradients.opacities[at] = total[5];
  std::copy(total + 6, total + 9, gradients.colours + 3 * at);
  gradients.depths[at] = total[9];
}

}  // namespace

Splats Views::view(int64_t index) const {
  const int64_t first = index * splats.count;
  return {splats.means + 2 * first,  splats.conics + 3 * first,
          splats.extents + 2 * first, splats.depths + first,
          splats.opacities + first,  splats.colours + 3 * first,
          splats.count};
}

void draw(const Views& views, const Parallel& parallel, int threads, float* layers,
          const Traces& traces, int32_t* overflow) {
  const DrawTile draw_tile = kernels().draw;
  for_views(
      views, parallel, threads,
      [&](int64_t view, Bins& bins) {
        overflow[view] = static_cast<int32_t>(std::min<int64_t>(bins.overflow, INT32_MAX));
      },
      [&](int64_t view, Bins& bins, int64_t tile) {
        const int64_t first = view * views.pixels();
        draw_tile(bins.tile(views.image, tile), views.image, layers + kLayers * first,
                  trace_of_view(traces, first));
      },
      [](int64_t, Bins&) {});
}

void transpose(const Views& views, const Parallel& parallel, int threads, const Traces& traces,
               const float* layers_gradient, const Gradients& gradients) {
  const TransposeTile transpose_tile = kernels().transpose;
  const int64_t splats = views.views * views.splats.count;
  std::fill_n(gradients.means, 2 * splats, 0.0f);
  std::fill_n(gradients.conics, 3 * splats, 0.0f);
  std::fill_n(gradients.depths, splats, 0.0f);
  std::fill_n(gradients.opacities, splats, 0.0f);
  std::fill_n(gradients.colours, 3 * splats, 0.0f);
  std::vector<std::unique_ptr<float[]>> partial(views.views);
  for_views(
      views, parallel, threads,
      [&](int64_t view, Bins& bins) {
        // Not zeroed: every intersection writes its own.
        partial[view].reset(new float[bins.kept * kParameters]);
      },
      [&](int64_t view, Bins& bins, int64_t tile) {
        const int64_t first = view * views.pixels();
        transpose_tile(bins.tile(views.image, tile), views.image, trace_of_view(traces, first),
                       layers_gradient + kLayers * first, partial[view].get());
      },
      [&](int64_t view, Bins& bins) {
        const int64_t rows = bins.rows.size();
        parallel((rows + kRowsPerCall - 1) / kRowsPerCall, [&](int64_t call) {
          const int64_t end = std::min(rows, (call + 1) * kRowsPerCall);
          for (int64_t i = call * kRowsPerCall; i < end; i++) {
            gather(bins.rows[i], bins.kept, partial[view].get(), view, views, gradients);
          }
        });
        partial[view].reset();
      });
}

const Kernels& kernels() {
#ifdef D4S_HAS_X86_64_V3
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
    return x86_64_v3::kKernels;
  }
#endif
  return baseline::kKernels;
}

}  // namespace d4s
