"""Tensors of which each process of a group holds a part (`DTensor`, on a mesh of one dimension): what is where."""

import numpy as np
import torch
from torch import Tensor
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_numbers(tensor: Tensor, dim: int) -> np.ndarray:
    """int64, ascending: which of the whole tensor's rows, columns, ... this process holds."""
    number = torch.arange(tensor.shape[dim])
    if not isinstance(tensor, DTensor):
        return number.numpy()
    (placement,) = tensor.placements
    if getattr(placement, "dim", None) not in (dim, dim - tensor.ndim):
        return number.numpy()
    strided = isinstance(placement, _StridedShard)
    along = _StridedShard(0, split_factor=placement.split_factor) if strided else Shard(0)  # type: ignore[attr-defined]
    mesh = tensor.device_mesh
    held = distribute_tensor(number.to(mesh.device_type), mesh, [along], src_data_rank=None)
    return held.to_local().cpu().numpy()


def bfloat16_bits(tensor: Tensor, index_n: Tensor) -> Tensor:
    """int16 [n], on the host: elements of the flattened whole tensor, rounded to bfloat16.

    Of a tensor in parts every process of the group must call it, and gets the same.
    """
    if not isinstance(tensor, DTensor):
        return _bits(tensor.flatten()[index_n.to(tensor.device)]).cpu()
    places = np.unravel_index(index_n.numpy(), tensor.shape)
    held = [held_numbers(tensor, dim) for dim in range(tensor.ndim)]
    rows = [np.searchsorted(numbers, place) for numbers, place in zip(held, places, strict=True)]
    rows = [row.clip(max=len(numbers) - 1) for row, numbers in zip(rows, held, strict=True)]
    hits = [numbers[row] == place for numbers, row, place in zip(held, rows, places, strict=True)]
    is_here_n = torch.from_numpy(np.logical_and.reduce(hits))
    part = tensor.to_local()
    bits_n = _bits(part[tuple(torch.from_numpy(row).to(part.device) for row in rows)]).int()
    bits_n *= is_here_n.to(part.device)
    if not tensor.placements[0].is_replicate():
        all_reduce(bits_n, group=tensor.device_mesh.get_group())  # one of them isn't 0
    return bits_n.to(torch.int16).cpu()


def _bits(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).view(torch.int16)
