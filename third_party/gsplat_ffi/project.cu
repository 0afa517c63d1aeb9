// XLA FFI handlers for gsplat's projection of 3D Gaussians to 2D splats.
//
// Shapes: v views, n Gaussians of each view. gsplat calls v the batch and gives each batch any
// number of cameras; here it is one.
#include "arrays.h"

// These want Tensor to be declared.
#include "Common.h"
#include "Projection.h"

namespace gsplat_ffi {
namespace {

constexpr float kFarPlane = 1e10f;
// Splats of this radius in pixels or less would be left out: none.
constexpr float kRadiusClip = 0.0f;
constexpr int64_t kWarp = 32;

// gsplat wants an axis for the cameras of a batch.
at::Tensor OneCamera(Floats& matrices) {
  Shape shape = ShapeOf(matrices);
  shape.insert(shape.begin() + 1, 1);
  return at::Tensor(matrices.untyped_data(), shape);
}

void ExpectGaussians(Floats& means, Floats& quaternions, Floats& scales, Floats& views,
                     Floats& intrinsics) {
  Expect(means.dimensions().size() == 3, "means to have shape [v n 3]");
  const int64_t v = means.dimensions()[0];
  const int64_t n = means.dimensions()[1];
  // gsplat sums the gradients of a camera over the 32 threads of a warp before it looks which
  // batch they belong to: a warp must not straddle two views.
  Expect(n > 0 && n % kWarp == 0, "a multiple of 32 Gaussians");
  ExpectShape("means", means, {v, n, 3});
  ExpectShape("quaternions", quaternions, {v, n, 4});
  ExpectShape("scales", scales, {v, n, 3});
  ExpectShape("camera_from_world", views, {v, 4, 4});
  ExpectShape("intrinsics", intrinsics, {v, 3, 3});
}

gsplat::CameraModelType Model(bool orthographic) {
  return orthographic ? gsplat::CameraModelType::ORTHO : gsplat::CameraModelType::PINHOLE;
}

ffi::Error ProjectForward(Resources resources, Floats means, Floats quaternions, Floats scales,
                          Floats opacities, Floats camera_from_world, Floats intrinsics,
                          IntsOut radii, FloatsOut means2d, FloatsOut depths, FloatsOut conics,
                          FloatsOut compensations, int32_t width, int32_t height, float blur,
                          float near_plane, bool orthographic, bool antialiased) {
  return Run("project_forward", resources, [&] {
    ExpectGaussians(means, quaternions, scales, camera_from_world, intrinsics);
    const int64_t v = means.dimensions()[0];
    const int64_t n = means.dimensions()[1];
    ExpectShape("opacities", opacities, {v, n});
    ExpectShape("radii", *radii, {v, n, 2});
    ExpectShape("means2d", *means2d, {v, n, 2});
    ExpectShape("depths", *depths, {v, n});
    ExpectShape("conics", *conics, {v, n, 3});
    ExpectShape("compensations", *compensations, {v, n});
    at::Tensor compensated = Cleared(compensations);
    // Given an array for them, gsplat takes them into account when it bounds the splats.
    at::optional<at::Tensor> wanted;
    if (antialiased) wanted = compensated;
    gsplat::launch_projection_ewa_3dgs_fused_fwd_kernel(
        AsTensor(means), std::nullopt, AsTensor(quaternions), AsTensor(scales),
        AsTensor(opacities), OneCamera(camera_from_world), OneCamera(intrinsics), width, height,
        blur, near_plane, kFarPlane, kRadiusClip, Model(orthographic), Cleared(radii),
        Cleared(means2d), Cleared(depths), Cleared(conics), wanted);
  });
}

ffi::Error ProjectBackward(Resources resources, Floats means, Floats quaternions, Floats scales,
                           Floats camera_from_world, Floats intrinsics, Ints radii, Floats conics,
                           Floats compensations, Floats means2d_gradient, Floats depths_gradient,
                           Floats conics_gradient, Floats compensations_gradient,
                           FloatsOut means_gradient, FloatsOut quaternions_gradient,
                           FloatsOut scales_gradient, FloatsOut camera_from_world_gradient,
                           int32_t width, int32_t height, float blur, bool orthographic,
                           bool antialiased) {
  return Run("project_backward", resources, [&] {
    ExpectGaussians(means, quaternions, scales, camera_from_world, intrinsics);
    const int64_t v = means.dimensions()[0];
    const int64_t n = means.dimensions()[1];
    ExpectShape("radii", radii, {v, n, 2});
    ExpectShape("conics", conics, {v, n, 3});
    ExpectShape("compensations", compensations, {v, n});
    ExpectShape("gradient of means2d", means2d_gradient, {v, n, 2});
    ExpectShape("gradient of depths", depths_gradient, {v, n});
    ExpectShape("gradient of conics", conics_gradient, {v, n, 3});
    ExpectShape("gradient of compensations", compensations_gradient, {v, n});
    ExpectShape("gradient of means", *means_gradient, {v, n, 3});
    ExpectShape("gradient of quaternions", *quaternions_gradient, {v, n, 4});
    ExpectShape("gradient of scales", *scales_gradient, {v, n, 3});
    ExpectShape("gradient of camera_from_world", *camera_from_world_gradient, {v, 4, 4});
    at::optional<at::Tensor> used, used_gradient;
    if (antialiased) used = AsTensor(compensations);
    if (antialiased) used_gradient = AsTensor(compensations_gradient);
    gsplat::launch_projection_ewa_3dgs_fused_bwd_kernel(
        AsTensor(means), std::nullopt, AsTensor(quaternions), AsTensor(scales),
        OneCamera(camera_from_world), OneCamera(intrinsics), width, height, blur,
        Model(orthographic), AsTensor(radii), AsTensor(conics), used, AsTensor(means2d_gradient),
        AsTensor(depths_gradient), AsTensor(conics_gradient), used_gradient,
        /*viewmats_requires_grad=*/true, Cleared(means_gradient), /*v_covars=*/at::Tensor(),
        Cleared(quaternions_gradient), Cleared(scales_gradient),
        Cleared(camera_from_world_gradient));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GsplatProjectForward, ProjectForward,
                              ffi::Ffi::Bind()
                                  .Ctx<Resources>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int32_t>("width")
                                  .Attr<int32_t>("height")
                                  .Attr<float>("blur")
                                  .Attr<float>("near_plane")
                                  .Attr<bool>("orthographic")
                                  .Attr<bool>("antialiased"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GsplatProjectBackward, ProjectBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<Resources>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int32_t>("width")
                                  .Attr<int32_t>("height")
                                  .Attr<float>("blur")
                                  .Attr<bool>("orthographic")
                                  .Attr<bool>("antialiased"));

}  // namespace gsplat_ffi
