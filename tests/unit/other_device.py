"""A second device made of CPU memory: whatever mixes it with the CPU fails, as on a machine with a GPU.

Its tensors call themselves `meta`, hold a CPU tensor, and compute with that one's arithmetic: results are the CPU's but
for the last digits of attention, which has no fused kernel here. As on a GPU, a scalar of the CPU may meet them, an
index may be the CPU's, and numpy cannot see them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")
CPU = torch.device("cpu")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default)


class FarTensor(torch.Tensor):
    """A tensor of the other device; `near` is what it holds."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=FAR,
            requires_grad=near.requires_grad,
        )  # fmt: skip

    def __init__(self, near: torch.Tensor):
        self.near = near

    def __repr__(self, **_) -> str:
        return f"FarTensor({self.near})"

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args: tuple, kwargs: dict):
    """`operation` on the tensors' own device. Raises RuntimeError where they have two."""
    with _Everywhere():  # in inference mode operations that are made of others arrive whole
        found = operation.decompose(*args, **kwargs)
    if found is not NotImplemented:
        return found
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = any(isinstance(x, FarTensor) for x in tensors)
    to = kwargs.get("device")
    if far and operation not in MOVES:
        checked = tree_leaves((args[0], args[2:])) if operation in INDEXED else tensors
        mixed = [x for x in checked if isinstance(x, torch.Tensor) and not isinstance(x, FarTensor) and x.ndim]
        if mixed:
            raise RuntimeError(f"{operation}: {len(mixed)} of {len(tensors)} tensors are on the CPU, the others not")
    if operation is torch.ops.aten.copy_.default:
        stays = isinstance(args[0], FarTensor)
    else:
        stays = far if to is None else torch.device(to) == FAR
    near = {id(x.near): x for x in tensors if isinstance(x, FarTensor)}
    args, kwargs = tree_map(lambda x: x.near if isinstance(x, FarTensor) else x, (args, kwargs))
    if to is not None:
        kwargs["device"] = CPU
    result = operation(*args, **kwargs)
    if not stays:
        return result
    return tree_map(lambda x: near.get(id(x), _far(x)) if isinstance(x, torch.Tensor) else x, result)


def _far(near: torch.Tensor) -> FarTensor:
    with torch.inference_mode(near.is_inference()):  # a view of an older tensor is none of inference mode's
        return FarTensor(near)


class _Everywhere(TorchDispatchMode):
    """Sees the operations that no tensor of the other device takes part in: those that make one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` fills its memory itself, unseen by operations."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.tensor:
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        return function(*args, **kwargs).to(device or CPU)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Within it there is a second device."""
    with _Everywhere(), _Literals():
        yield FAR
