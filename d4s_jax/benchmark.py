"""Makes a set of scenes for d4s_jax.evaluate.

Examples:
  python -m d4s_jax.benchmark --output=sets/embedded
  python -m d4s_jax.benchmark --photographs=photos --output=sets/photos --checkpoint=runs/joint-tiny

With --photographs, a folder of pictures with a NAME.txt beside each, it is the paper's design: each
picture along five paths (spiral, forward, backward, up, down); 32 pictures make its 160 samples.
Without, it is held-out scenes of the embedded data with their truth. Scenes are not watermarked,
which would be part of what is scored. The same command goes on where it was interrupted.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.evaluation import benchmark
from d4s_jax.evaluation.maker import Maker
from d4s_jax.pipeline import progress
from d4s_jax.training import compilation, inference

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the set.", required=True)
_PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "Folder of pictures and captions.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "shipped", "A run.")
_SCENES = flags.DEFINE_integer("scenes", 16, "Of the embedded data, without --photographs.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def main(argv: list[str]) -> None:
  """Makes the set."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output = pathlib.Path(_OUTPUT.value)
    given = None if _PHOTOGRAPHS.value is None else pathlib.Path(_PHOTOGRAPHS.value)
    if given:
      benchmark.photographs(given)
    compilation.cache()
    maker = Maker(inference.open_checkpoint(_CHECKPOINT.value, progress.timed), _SEED.value)
    if given:
      count = benchmark.of_photographs(given, output, maker)
      print(f"{count} scenes in {output / 'generated'} (the paper's design has 160)")
      return
    benchmark.embedded(output, maker, _SCENES.value)
    sets = ",".join(str(output / name) for name in ("generated", "reconstructed", "still"))
    print(
      f"Score it: python -m d4s_jax.evaluate --config=configs/evaluate.py --config.samples={sets}"
      f" --config.reference={output / 'true'} --config.frames={maker.frames}"
    )


if __name__ == "__main__":
  errors.run(main)
