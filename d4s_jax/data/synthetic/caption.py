"""Captions: what is seen, where, how each thing moves, how the camera moves; all of it true.

Short on purpose, movers first: a byte vocabulary gives a caption about a hundred letters.
"""

import numpy as np

from d4s_jax.data.synthetic.compose import Setting
from d4s_jax.data.synthetic.description import Body
from d4s_jax.data.synthetic.palette import with_article

CAMERA_WORDS = {
  "spiral": "spirals",
  "forward": "moves forward",
  "backward": "moves back",
  "up": "rises",
  "down": "sinks",
  "orbit": "orbits",
}
_VERBS = {
  "slide": "slides",
  "roll": "rolls",
  "bounce": "bounces",
  "spin": "spins",
}


def caption(setting: Setting, seen: list[int]) -> str:
  """The caption of a clip in which the solids with these indices are seen."""
  scene = setting.scene
  bodies = sorted((scene.bodies[i] for i in seen), key=lambda body: not body.motion.moves)
  phrases = [
    f"{_name(body)} {_VERBS[body.motion.kind]}{_direction(body, scene.room_from_world)}"
    for body in bodies
    if body.motion.moves
  ]
  standing = [_name(body) for body in bodies if not body.motion.moves]
  if standing:
    phrases.append(f"{_listed(standing)} {'stands' if len(standing) == 1 else 'stand'}")
  what = _listed(phrases) + " " if phrases else ""
  return _sentence(f"{what}{scene.place.name}") + f" The camera {CAMERA_WORDS[setting.path.name]}."


def _name(body: Body) -> str:
  return with_article(f"{body.material.name} {body.noun}")


def _direction(body: Body, room_from_world) -> str:
  """Where a solid goes, as the first camera sees it."""
  right, _, ahead = room_from_world[:3, :3].T @ body.motion.way
  if not np.any(body.motion.way):
    return ""
  if abs(right) > abs(ahead):
    return " right" if right > 0 else " left"
  return " away" if ahead > 0 else " closer"


def _listed(items: list[str]) -> str:
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _sentence(words: str) -> str:
  return words[0].upper() + words[1:] + "."
