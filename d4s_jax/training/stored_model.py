"""The parameters of a run on disk, read one by one or block by block: a large model passes through.

`checkpoint.read_model` is for models that fit in memory.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from d4s_jax.formats.tensors import Spec
from d4s_jax.training import checkpoint
from d4s_jax.training.places import Place
from d4s_jax.training.sums import by_path, share

# Chunks are decoded one after another: several of an old checkpoint would not fit.
_ONE_BY_ONE = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
# What Orbax calls the memory for tables of contents.
_TABLES = {"cache_pool#ocdbt": {"total_bytes_limit": 10**8}}


class StoredModel:
  """The parameters of the newest checkpoint of a run, by path ("transformer/blocks/mlp_in/kernel").

  Attributes:
    specs: type, which is that of float32 for all, and shape of each.
  """

  def __init__(self, folder: Place, like: Mapping[str, Any]):
    """Reads what there is, and no array yet.

    Args:
      folder: of the run.
      like: nested parameters, or their abstract shapes, as the configuration builds them.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or of another configuration.
    """
    self._step = checkpoint.step_place(folder, checkpoint.latest_step(folder))
    with checkpoint.reading(self._step) as reader:
      self._arrays = checkpoint.stored_arrays(reader, self._step, "model")
      checkpoint.check_shapes(self._step, self._arrays, by_path(dict(like)))
      sums = self._step / "sums" / "metadata"
      self._sums = json.loads(sums.read_text())["model"] if sums.exists() else {}
    self.specs = {path: Spec("F32", tuple(x.shape)) for path, x in self._arrays.items()}
    # Of each array: the sum of the rows read so far, and which.
    self._found = dict.fromkeys(self._arrays, 0)
    self._rows: dict[str, set[int | None]] = {path: set() for path in self._arrays}
    self._context = tensorstore.Context(_ONE_BY_ONE | _TABLES)

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """A parameter, or one row of it, in float32.

    Raises:
      DamagedError: it can't be read, or with it all rows were read and they are not what was
        written.
    """
    about = self._arrays[name]
    info = ocp.type_handlers.ParamInfo(
      name=about.name,
      parent_dir=epath.Path(about.directory),
      use_zarr3=False,
      ts_context=self._context,
    )
    spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
    with checkpoint.damage_of(self._step):
      opened: Any = tensorstore.open(spec, read=True, open=True, context=self._context).result()
      values = np.asarray((opened if row is None else opened[row]).read().result())
      self._check(name, values, row)
    return values.astype(np.float32, copy=False)

  def _check(self, path: str, values: np.ndarray, row: int | None) -> None:
    rows = self._rows[path]
    if path not in self._sums or row in rows:
      return
    rows.add(row)
    self._found[path] += share(values, (row or 0) * values.size)
    if row is None or len(rows) == self.specs[path].shape[0]:
      # Once is enough.
      if self._found[path] % 2**32 != self._sums.pop(path):
        raise ValueError(f"{path} is not what was written")
