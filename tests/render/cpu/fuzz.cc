// Draws random scenes, good and hostile, with the CPU renderer's kernels, forward and backward, for
// sanitizers to watch. Exits with 1 where a result is not finite, out of range, or depends on the
// number of threads.
//
// usage: fuzz SCENES
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "rasterize.h"
#include "tiles.h"

namespace {

using Numbers = std::vector<float>;

struct Scene {
  int height, width;
  int64_t views, count, capacity;
  Numbers means, conics, extents, depths, opacities, colours, gradient;
};

struct Result {
  Numbers layers, transmittance, means, conics, depths, opacities, colours;
  std::vector<int32_t> last, overflow;

  bool operator==(const Result& other) const {
    const auto same = [](const auto& a, const auto& b) {
      const bool empty = a.empty() && b.empty();
      return empty ||
             (a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
    };
    return same(layers, other.layers) && same(transmittance, other.transmittance) &&
           same(means, other.means) && same(conics, other.conics) &&
           same(depths, other.depths) && same(opacities, other.opacities) &&
           same(colours, other.colours) && same(last, other.last) &&
           same(overflow, other.overflow);
  }
};

const float kHostile[] = {std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::max(),
                          -std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::denorm_min(),
                          std::numeric_limits<float>::min(),
                          0.0f,
                          -0.0f,
                          1e30f,
                          -1.0f};

Scene make_scene(std::mt19937& random, bool hostile) {
  const auto uniform = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  const auto integer = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Scene scene;
  scene.height = integer(1, 70);
  scene.width = integer(1, 90);
  scene.views = integer(1, 3);
  scene.count = integer(0, 300);
  scene.capacity = integer(0, 2) ? INT32_MAX : integer(1, 200);
  for (int64_t i = 0; i < scene.views * scene.count; i++) {
    // A covariance from two deviations and an angle; some are needles, some cover everything.
    const float s = std::exp(uniform(-1, 6)), t = std::exp(uniform(-1, 6)), turn = uniform(0, 7);
    const float ca = std::cos(turn), sa = std::sin(turn);
    const float xx = ca * ca * s * s + sa * sa * t * t + 0.3f;
    const float yy = sa * sa * s * s + ca * ca * t * t + 0.3f;
    const float xy = ca * sa * (s * s - t * t);
    const float determinant = xx * yy - xy * xy;
    const float opacity = integer(0, 3) ? uniform(0.003f, 1) : 1;
    const float radius = std::sqrt(2 * std::log(std::max(opacity, 1 / 255.0f) * 255));
    scene.means.insert(scene.means.end(), {uniform(-20, scene.width + 20.0f),
                                           uniform(-20, scene.height + 20.0f)});
    scene.conics.insert(scene.conics.end(),
                        {yy / determinant, -xy / determinant, xx / determinant});
    scene.extents.insert(scene.extents.end(), {radius * std::sqrt(xx), radius * std::sqrt(yy)});
    scene.depths.push_back(uniform(0.01f, 9));
    scene.opacities.push_back(opacity);
    for (int c = 0; c < 3; c++) scene.colours.push_back(uniform(0, 1));
  }
  const int64_t pixels = scene.views * scene.height * scene.width;
  for (int64_t i = 0; i < 5 * pixels; i++) scene.gradient.push_back(uniform(-1, 1));
  if (hostile) {
    for (Numbers* numbers : {&scene.means, &scene.conics, &scene.extents, &scene.depths,
                             &scene.opacities, &scene.colours}) {
      for (float& number : *numbers) {
        if (!integer(0, 40)) number = kHostile[integer(0, std::size(kHostile) - 1)];
      }
    }
  }
  return scene;
}

d4s::Parallel on(int threads) {
  return [threads](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    const auto run = [&] {
      for (int64_t i; (i = next.fetch_add(1)) < count;) body(i);
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; i++) helpers.emplace_back(run);
    run();
    for (auto& helper : helpers) helper.join();
  };
}

Result render(const Scene& scene, int threads) {
  const int64_t splats = scene.views * scene.count;
  const int64_t pixels = scene.views * scene.height * scene.width;
  const float poison = std::numeric_limits<float>::quiet_NaN();
  Result result{Numbers(5 * pixels, poison), Numbers(pixels, poison), Numbers(2 * splats, poison),
                Numbers(3 * splats, poison), Numbers(splats, poison), Numbers(splats, poison),
                Numbers(3 * splats, poison), std::vector<int32_t>(pixels, -7),
                std::vector<int32_t>(scene.views, -7)};
  const d4s::Views views{
      {scene.means.data(), scene.conics.data(), scene.extents.data(), scene.depths.data(),
       scene.opacities.data(), scene.colours.data(), scene.count},
      {scene.height, scene.width},
      scene.views,
      scene.capacity};
  const d4s::Traces traces{result.transmittance.data(), result.last.data()};
  d4s::draw(views, on(threads), threads, result.layers.data(), traces, result.overflow.data());
  // Without a trace the picture is the same.
  Numbers again(5 * pixels, poison);
  d4s::draw(views, on(threads), threads, again.data(), {nullptr, nullptr},
            result.overflow.data());
  if (std::memcmp(again.data(), result.layers.data(), 4 * again.size()) != 0) {
    std::printf("the trace changes the picture\n");
    std::exit(1);
  }
  d4s::transpose(views, on(threads), threads, traces, scene.gradient.data(),
                 {result.means.data(), result.conics.data(), result.depths.data(),
                  result.opacities.data(), result.colours.data()});
  return result;
}

bool all_finite(const Numbers& numbers) {
  for (float number : numbers) {
    if (!std::isfinite(number)) return false;
  }
  return true;
}

// The layers of one pixel in float64, by the definition: every splat, front to back.
void composite(const Scene& scene, int64_t view, const std::vector<int64_t>& order, double x,
               double y, double* layers) {
  std::fill_n(layers, 5, 0.0);
  double transmittance = 1;
  for (int64_t i : order) {
    const int64_t k = view * scene.count + i;
    const float* conic = &scene.conics[3 * k];
    const double dx = scene.means[2 * k] - x, dy = scene.means[2 * k + 1] - y;
    const double sigma = 0.5 * (conic[0] * dx * dx + conic[2] * dy * dy) + conic[1] * dx * dy;
    const double alpha = std::min(0.999, scene.opacities[k] * std::exp(-sigma));
    if (sigma < 0 || alpha < d4s::kMinAlpha) continue;
    if (transmittance * (1 - alpha) <= d4s::kMinTransmittance) return;
    const double weight = transmittance * alpha;
    transmittance -= weight;
    const float* colour = &scene.colours[3 * k];
    const double values[] = {colour[0], colour[1], colour[2], scene.depths[k], 1};
    for (int c = 0; c < 5; c++) layers[c] += weight * values[c];
  }
}

// Whether the layers are those of the definition. Single pixels may differ by a splat that is at
// the least opacity that counts, or at the end of a pixel.
bool as_defined(const Scene& scene, const Result& result) {
  double sum = 0;
  for (int64_t view = 0; view < scene.views; view++) {
    std::vector<int64_t> order(scene.count);
    for (int64_t i = 0; i < scene.count; i++) order[i] = i;
    const float* depths = scene.depths.data() + view * scene.count;
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return depths[a] < depths[b]; });
    for (int i = 0; i < scene.height; i++) {
      for (int j = 0; j < scene.width; j++) {
        double layers[5];
        composite(scene, view, order, j + 0.5, i + 0.5, layers);
        const int64_t pixel = (view * scene.height + i) * scene.width + j;
        for (int c = 0; c < 5; c++) sum += std::abs(layers[c] - result.layers[5 * pixel + c]);
      }
    }
  }
  return sum < 1e-4 * result.layers.size();
}

const char* wrong_with(const Scene& scene, const Result& result, bool hostile) {
  for (int64_t i = 0; i < static_cast<int64_t>(result.layers.size()); i += 5) {
    const float alpha = result.layers[i + 4];
    if (!(alpha >= 0 && alpha <= 1)) return "alpha is not within [0, 1]";
  }
  for (int32_t overflow : result.overflow) {
    if (overflow < 0 || (scene.capacity == INT32_MAX && overflow)) return "overflow";
  }
  // Finite but huge colours may overflow in a sum; ordinary scenes may not.
  if (hostile) return nullptr;
  if (!all_finite(result.layers)) return "the layers are not finite";
  if (scene.capacity == INT32_MAX && !as_defined(scene, result)) return "not as defined";
  for (const Numbers* gradient : {&result.means, &result.conics, &result.depths,
                                  &result.opacities, &result.colours}) {
    if (!all_finite(*gradient)) return "a gradient is not finite";
  }
  return nullptr;
}

}  // namespace

int main(int, char** arguments) {
  const int scenes = std::atoi(arguments[1]);
  std::printf("%s kernels\n", d4s::kernels().name);
  for (int seed = 0; seed < scenes; seed++) {
    std::mt19937 random(seed);
    const bool hostile = seed % 2;
    const Scene scene = make_scene(random, hostile);
    const Result result = render(scene, 1);
    const char* wrong = wrong_with(scene, result, hostile);
    if (!wrong && !(render(scene, 3) == result)) wrong = "threads change the result";
    if (wrong) {
      std::printf("scene %d: %s\n", seed, wrong);
      return 1;
    }
  }
  std::printf("%d scenes\n", scenes);
  return 0;
}
