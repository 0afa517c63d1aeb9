// XLA FFI handlers for gsplat's alpha compositing of splats along the tile lists of intersect.cu.
//
// Shapes: v views, n splats of each view, h w pixels, rows x columns of tiles. The lists have one
// row of tiles more, below the image; see intersect.cu.
#include "arrays.h"

// These want Tensor to be declared.
#include "Common.h"
#include "Rasterization.h"

namespace gsplat_ffi {
namespace {

// Red, green, blue and depth. gsplat is compiled for this number only.
constexpr int64_t kChannels = GSPLAT_FFI_CHANNELS;

void ExpectSplats(Floats& means2d, Floats& conics, Floats& features, Floats& opacities,
                  Ints& starts, int32_t width, int32_t height, int32_t tile) {
  Expect(means2d.dimensions().size() == 3, "means2d to have shape [v n 2]");
  const int64_t v = means2d.dimensions()[0];
  const int64_t n = means2d.dimensions()[1];
  ExpectShape("means2d", means2d, {v, n, 2});
  ExpectShape("conics", conics, {v, n, 3});
  ExpectShape("features", features, {v, n, kChannels});
  ExpectShape("opacities", opacities, {v, n});
  ExpectShape("starts", starts, {v, (height + tile - 1) / tile + 1, (width + tile - 1) / tile});
}

ffi::Error RasterizeForward(Resources resources, Floats means2d, Floats conics, Floats features,
                            Floats opacities, Ints splats, Ints starts, FloatsOut image,
                            FloatsOut alphas, IntsOut last, int32_t width, int32_t height,
                            int32_t tile) {
  return Run("rasterize_forward", resources, [&] {
    ExpectSplats(means2d, conics, features, opacities, starts, width, height, tile);
    const int64_t v = means2d.dimensions()[0];
    ExpectShape("image", *image, {v, height, width, kChannels});
    ExpectShape("alphas", *alphas, {v, height, width, 1});
    ExpectShape("last", *last, {v, height, width});
    gsplat::launch_rasterize_to_pixels_3dgs_fwd_kernel<kChannels>(
        AsTensor(means2d), AsTensor(conics), AsTensor(features), AsTensor(opacities),
        /*backgrounds=*/std::nullopt, /*masks=*/std::nullopt, width, height, tile,
        AsTensor(starts), AsTensor(splats), AsTensor(image), AsTensor(alphas), AsTensor(last));
  });
}

ffi::Error RasterizeBackward(Resources resources, Floats means2d, Floats conics, Floats features,
                             Floats opacities, Ints splats, Ints starts, Flags inside,
                             Floats alphas, Ints last, Floats image_gradient,
                             Floats alphas_gradient, FloatsOut means2d_gradient,
                             FloatsOut conics_gradient, FloatsOut features_gradient,
                             FloatsOut opacities_gradient, int32_t width, int32_t height,
                             int32_t tile) {
  return Run("rasterize_backward", resources, [&] {
    ExpectSplats(means2d, conics, features, opacities, starts, width, height, tile);
    const int64_t v = means2d.dimensions()[0];
    ExpectShape("inside", inside, ShapeOf(starts));
    ExpectShape("alphas", alphas, {v, height, width, 1});
    ExpectShape("last", last, {v, height, width});
    ExpectShape("gradient of image", image_gradient, {v, height, width, kChannels});
    ExpectShape("gradient of alphas", alphas_gradient, {v, height, width, 1});
    ExpectShape("gradient of means2d", *means2d_gradient, ShapeOf(means2d));
    ExpectShape("gradient of conics", *conics_gradient, ShapeOf(conics));
    ExpectShape("gradient of features", *features_gradient, ShapeOf(features));
    ExpectShape("gradient of opacities", *opacities_gradient, ShapeOf(opacities));
    // Without the mask one block would walk through all pads of a view, and take milliseconds.
    gsplat::launch_rasterize_to_pixels_3dgs_bwd_kernel<kChannels>(
        AsTensor(means2d), AsTensor(conics), AsTensor(features), AsTensor(opacities),
        /*backgrounds=*/std::nullopt, /*masks=*/AsTensor(inside), width, height, tile,
        AsTensor(starts), AsTensor(splats), AsTensor(alphas), AsTensor(last),
        AsTensor(image_gradient), AsTensor(alphas_gradient), /*v_means2d_abs=*/std::nullopt,
        Cleared(means2d_gradient), Cleared(conics_gradient), Cleared(features_gradient),
        Cleared(opacities_gradient));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GsplatRasterizeForward, RasterizeForward,
                              ffi::Ffi::Bind()
                                  .Ctx<Resources>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Ints>()
                                  .Attr<int32_t>("width")
                                  .Attr<int32_t>("height")
                                  .Attr<int32_t>("tile"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GsplatRasterizeBackward, RasterizeBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<Resources>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Flags>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int32_t>("width")
                                  .Attr<int32_t>("height")
                                  .Attr<int32_t>("tile"));

}  // namespace gsplat_ffi
