// The XLA FFI handlers: shapes in, shapes out, and XLA's threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "rasterize.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;

// Work shared by the calling thread and those of the pool. Calls that the pool starts late, when
// everything is done, find nothing left; the state outlives the caller for them.
struct Work {
  Work(int64_t count, const std::function<void(int64_t)>& body) : count(count), body(body) {}

  void run() {
    for (int64_t i; (i = next.fetch_add(1)) < count;) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
      if (done.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return done.load() == count; });
    if (error) std::rethrow_exception(error);
  }

  const int64_t count;
  // Only called while the caller waits.
  const std::function<void(int64_t)>& body;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;
};

int threads_of(ffi::ThreadPool& pool) {
  return static_cast<int>(std::max<int64_t>(1, pool.num_threads()));
}

d4s::Parallel on(ffi::ThreadPool& pool) {
  return [&pool](int64_t count, const std::function<void(int64_t)>& body) {
    if (count < 1) return;
    auto work = std::make_shared<Work>(count, body);
    // The caller works too, so that a pool whose threads are all busy can't stop it.
    const int64_t helpers = std::min<int64_t>(count, threads_of(pool)) - 1;
    try {
      for (int64_t i = 0; i < helpers; i++) {
        pool.Schedule(std::function<void()>([work] { work->run(); }));
      }
    } catch (const std::bad_alloc&) {
      // Those that have started still call `body`: go on with fewer.
    }
    work->run();
    work->wait();
  };
}

// The error for what is thrown: allocations fail, nothing else is expected.
ffi::Error error_for(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "The CPU renderer's tile lists don't fit into memory; give render() a "
                      "smaller capacity, or fewer views or Gaussians.");
  }
  return ffi::Error::Internal(std::string("The CPU renderer: ") + error.what());
}

d4s::Views views_of(const Floats& means, const Floats& conics, const Floats& extents,
                    const Floats& depths, const Floats& opacities, const Floats& colours,
                    const Floats& layers, int64_t capacity) {
  // Any number of leading axes: vmap adds some.
  const auto shape = layers.dimensions();
  const size_t rank = shape.size();
  int64_t views = 1;
  for (size_t i = 0; i + 3 < rank; i++) views *= shape[i];
  return {{means.typed_data(), conics.typed_data(), extents.typed_data(), depths.typed_data(),
           opacities.typed_data(), colours.typed_data(), opacities.dimensions().back()},
          {static_cast<int>(shape[rank - 3]), static_cast<int>(shape[rank - 2])},
          views,
          capacity};
}

// layers [v, h, w, 5], transmittance and last [v, h, w] (or empty), overflow [v] of splats [v, n].
ffi::Error draw(ffi::ThreadPool pool, Floats means, Floats conics, Floats extents, Floats depths,
                Floats opacities, Floats colours, ffi::Result<Floats> layers,
                ffi::Result<Floats> transmittance, ffi::Result<Integers> last,
                ffi::Result<Integers> overflow, int64_t capacity) try {
  const auto views =
      views_of(means, conics, extents, depths, opacities, colours, *layers, capacity);
  d4s::Traces traces{nullptr, nullptr};
  if (last->element_count()) traces = {transmittance->typed_data(), last->typed_data()};
  d4s::draw(views, on(pool), threads_of(pool), layers->typed_data(), traces,
            overflow->typed_data());
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return error_for(error);
}

// Gradients of the splats from that of the layers and what `draw` left.
ffi::Error transpose(ffi::ThreadPool pool, Floats means, Floats conics, Floats extents,
                     Floats depths, Floats opacities, Floats colours, Floats transmittance,
                     Integers last, Floats gradient, ffi::Result<Floats> g_means,
                     ffi::Result<Floats> g_conics, ffi::Result<Floats> g_depths,
                     ffi::Result<Floats> g_opacities, ffi::Result<Floats> g_colours,
                     int64_t capacity) try {
  const auto views =
      views_of(means, conics, extents, depths, opacities, colours, gradient, capacity);
  const d4s::Traces traces{transmittance.typed_data(), last.typed_data()};
  d4s::transpose(views, on(pool), threads_of(pool), traces, gradient.typed_data(),
                 {g_means->typed_data(), g_conics->typed_data(), g_depths->typed_data(),
                  g_opacities->typed_data(), g_colours->typed_data()});
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return error_for(error);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(D4sDraw, draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Integers>()
                                  .Ret<Integers>()
                                  .Attr<int64_t>("capacity"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(D4sTranspose, transpose,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Integers>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("capacity"));

// What the library was built from: XLA refuses handlers of another version of its interface, and by
// then it is too late to draw otherwise; and an old library may lie beside new sources.
extern "C" int D4sFfiMajor() { return XLA_FFI_API_MAJOR; }
extern "C" int D4sFfiMinor() { return XLA_FFI_API_MINOR; }
extern "C" const char* D4sSources() { return D4S_SOURCES; }
