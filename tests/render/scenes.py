"""Small random scenes for the tests of the renderer; few shapes, since each one is compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax.types import Cameras, Gaussians

# Neither is a multiple of a tile.
HEIGHT, WIDTH = 21, 29


def gaussians(count: int = 48, coefficients: int = 16, seed: int = 0) -> Gaussians:
  """Gaussians [n] of 0.5 to 5 pixels in front of and around the cameras of `cameras`."""
  random = np.random.default_rng(seed)
  z = random.uniform(1.5, 6.0, count)
  means = np.stack([random.uniform(-0.6, 0.6, count) * z, random.uniform(-0.5, 0.5, count) * z, z])
  scales = np.exp(random.uniform(np.log(0.02), np.log(0.2), (count, 3))) * z[:, None]
  harmonics = random.normal(0, 0.3, (count, coefficients, 3))
  arrays = dict(
    means=means.T,
    # Not unit: the renderer normalises, and its gradient has to know.
    quaternions=random.normal(size=(count, 4)),
    scales=scales,
    opacities=random.uniform(0.05, 0.95, count),
    harmonics=harmonics,
  )
  return Gaussians(**{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})


def cameras(
  views: int = 2,
  seed: int = 0,
  height: int = HEIGHT,
  width: int = WIDTH,
  model: str = "pinhole",
) -> Cameras:
  """Cameras [v] near the origin that look along z, with uncentred, unequal intrinsics."""
  random = np.random.default_rng(seed)
  poses = np.tile(np.eye(4), (views, 1, 1))
  poses[:, :3, :3] = np.linalg.qr(np.eye(3) + random.normal(0, 0.06, (views, 3, 3)))[0]
  poses[:, :3, :3] *= np.sign(np.diagonal(poses[:, :3, :3], axis1=1, axis2=2))[:, None]
  poses[:, :3, 3] = random.normal(0, 0.1, (views, 3))
  lens = [[0.9 * width, 0, 0.46 * width], [0, 0.85 * width, 0.55 * height], [0, 0, 1]]
  if model == "orthographic":
    # About as many pixels a metre as a pinhole camera sees at a depth of 3 m.
    lens[0][0], lens[1][1] = lens[0][0] / 3, lens[1][1] / 3
  return Cameras(
    world_from_camera=jnp.asarray(poses, jnp.float32),
    intrinsics=jnp.tile(jnp.asarray(lens, jnp.float32), (views, 1, 1)),
    height=height,
    width=width,
    model=model,
  )


def select(scene: Gaussians, index) -> Gaussians:
  """The Gaussians at `index`."""
  return jax.tree.map(lambda array: array[index], scene)


def change(scene: Gaussians, **rows) -> Gaussians:
  """The scene with the first rows of some fields replaced."""
  arrays = {name: getattr(scene, name) for name in scene.__dataclass_fields__}
  for name, values in rows.items():
    values = jnp.asarray(values, jnp.float32)
    arrays[name] = arrays[name].at[: len(values)].set(values)
  return Gaussians(**arrays)
