"""Rigid motions as 4x4 matrices `world_from_camera`, over any leading axes."""

from jaxtyping import Float

from d4s_jax.geometry import AnyArray, namespace, rotations


def assemble(
  rotation: Float[AnyArray, "*b 3 3"], position: Float[AnyArray, "*b 3"]
) -> Float[AnyArray, "*b 4 4"]:
  """The 4x4 pose of a rotation matrix and a position."""
  xp = namespace(rotation, position)
  top = xp.concatenate([rotation, position[..., None]], axis=-1)
  bottom = xp.broadcast_to(xp.asarray([0, 0, 0, 1], dtype=top.dtype), (*top.shape[:-2], 1, 4))
  return xp.concatenate([top, bottom], axis=-2)


def compose(
  outer: Float[AnyArray, "*#b 4 4"], inner: Float[AnyArray, "*#b 4 4"]
) -> Float[AnyArray, "*#b 4 4"]:
  """The matrix product `outer @ inner` at full precision; leading axes broadcast, rank for rank."""
  xp = namespace(outer, inner)
  return xp.sum(outer[..., :, :, None] * inner[..., None, :, :], axis=-2)


def invert(poses: Float[AnyArray, "*b 4 4"]) -> Float[AnyArray, "*b 4 4"]:
  """The inverse rigid motion, by transposition: `camera_from_world` of `world_from_camera`."""
  xp = namespace(poses)
  rotation = xp.swapaxes(poses[..., :3, :3], -1, -2)
  return assemble(rotation, -rotations.rotate(rotation, poses[..., :3, 3]))


def relative_to(
  poses: Float[AnyArray, "*b f 4 4"], reference: Float[AnyArray, "*b 4 4"]
) -> Float[AnyArray, "*b f 4 4"]:
  """The poses in a world whose origin is the camera `reference`: inverse(reference) @ poses."""
  return compose(invert(reference)[..., None, :, :], poses)


def look_at(
  eye: Float[AnyArray, "*#b 3"], target: Float[AnyArray, "*#b 3"], up: Float[AnyArray, "*#b 3"]
) -> Float[AnyArray, "*#b 4 4"]:
  """The pose of a camera at `eye` that sees `target` in its centre and `up` upwards.

  OpenCV axes: the image's up is -y, so `up` is (0, -1, 0) in the world of a level first camera.
  `target - eye` must be neither zero nor parallel to `up`.
  """
  xp = namespace(eye, target, up)
  forward = _unit(target - eye)
  right = _unit(xp.cross(forward, up))
  down = xp.cross(forward, right)
  return assemble(xp.stack([right, down, forward], axis=-1), eye)


def interpolate(
  poses: Float[AnyArray, "f 4 4"], times: Float[AnyArray, "f"], query: Float[AnyArray, "t"]
) -> Float[AnyArray, "t 4 4"]:
  """Poses between key poses: slerp for the rotation, a cubic for the position.

  The position runs on the Hermite cubic whose velocity at a key is the slope of the parabola
  through that key and its two neighbours (a Catmull-Rom curve for uneven times): it passes through
  every key, its velocity has no jumps, and uniform straight motion stays exactly that. Before the
  first and after the last time the pose stands still.

  Args:
    poses: key poses.
    times: their times, strictly rising.
    query: the times asked for, in any order.
  """
  xp = namespace(poses, times, query)
  poses, times, query = (xp.asarray(array) for array in (poses, times, query))
  if len(times) == 1:
    return xp.broadcast_to(poses, (len(query), 4, 4))
  query = xp.clip(query, times[0], times[-1])
  passed = xp.sum(times[None, :] <= query[:, None], axis=-1)
  left = xp.clip(passed - 1, 0, len(times) - 2)
  duration = (times[left + 1] - times[left])[:, None]
  fraction = (query - times[left])[:, None] / duration

  quaternion = rotations.from_matrix(poses[:, :3, :3])
  turned = rotations.slerp(quaternion[left], quaternion[left + 1], fraction[:, 0])

  position = poses[:, :3, 3]
  velocity = _velocities(position, times)
  moved = (
    _hermite_start(fraction) * position[left]
    + _hermite_start(1 - fraction) * position[left + 1]
    + fraction * (1 - fraction) ** 2 * duration * velocity[left]
    - fraction**2 * (1 - fraction) * duration * velocity[left + 1]
  )
  return assemble(rotations.to_matrix(turned), moved)


def _hermite_start(fraction):
  return (1 + 2 * fraction) * (1 - fraction) ** 2


def _velocities(position, times):
  """Velocity at each key: the parabola's slope inside, the chord's slope at both ends."""
  xp = namespace(position, times)
  step = (times[1:] - times[:-1])[:, None]
  slope = (position[1:] - position[:-1]) / step
  inner = (step[1:] * slope[:-1] + step[:-1] * slope[1:]) / (step[1:] + step[:-1])
  return xp.concatenate([slope[:1], inner, slope[-1:]], axis=0)


def _unit(vectors):
  xp = namespace(vectors)
  return vectors / xp.sqrt(xp.sum(vectors * vectors, axis=-1, keepdims=True))
