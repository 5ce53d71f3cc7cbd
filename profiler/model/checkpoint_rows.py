"""Hold the keys that a process loaded against the checkpoint's own files: the first and the last of each network.

So a slice of a model that isn't the one it is taken for is found, whoever cut it. Of matrices that a checkpoint has
under other names (transformers joins experts), or in other files than safetensors, nothing is said.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.sharded_tensors import held_numbers, local_part
from neurotally.profiler.whole_files import read_json

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def refuse_other_rows(model: LoadedModel) -> int:
    """UnsupportedModelError, naming the layer, where a key isn't the checkpoint's; how many networks were looked at."""
    checkpoint = _Checkpoint(model.facts.id, model.facts.revision)
    names = {module: name for name, module in model.model.named_modules()}
    looked_at = 0
    for point in model.hook_points:
        if point.keys is None or (matrix := checkpoint.matrix(f"{names[point.keys[0]]}.weight")) is None:
            continue
        looked_at += 1
        if not _agree(point, matrix):
            raise UnsupportedModelError(f"{point}: its keys aren't the checkpoint's rows that they are taken for")
    return looked_at


def _agree(point: HookPoint, matrix: Any) -> bool:
    assert point.keys is not None
    module, first = point.keys
    weight = cast(Tensor, module.weight)
    rows, held = local_part(weight), held_numbers(weight, 0)
    if list(matrix.get_shape()) != list(weight.shape):
        return False
    last = min(first + point.width, len(rows)) - 1  # fewer, where what the ranks compute is gathered
    for row in (min(first, last), last):
        number = int(held[row])
        if not torch.equal(rows[row].cpu(), matrix[number : number + 1][0].to(rows.dtype)):
            return False
    return True


class _Checkpoint:
    """The matrices in a checkpoint's files, by name."""

    def __init__(self, model_id: str, revision: str | None):
        self._where = model_id, revision
        index = self._file(_INDEX)
        self._file_of: dict[str, str] = read_json(index)["weight_map"] if index else {}
        self._open: dict[str, Any] = {}

    def matrix(self, name: str) -> Any:
        """A matrix, to be read in parts; None where there is none of that name in it."""
        for own in (name, name.removeprefix("model.")):
            opened = self._opened(self._file_of.get(own, _ONE_FILE))
            if opened is not None and own in set(opened.keys()):
                return opened.get_slice(own)
        return None

    def _opened(self, name: str) -> Any:
        if name not in self._open:
            path = self._file(name)
            self._open[name] = safe_open(path, "pt") if path else None
        return self._open[name]

    def _file(self, name: str) -> Path | None:
        from transformers.utils.hub import cached_file

        model_id, revision = self._where
        found = None
        with suppress(OSError, InputError):
            found = cached_file(model_id, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None
