"""How much memory tensors take at a time on PyTorch, on the CPU too."""

import weakref
from collections.abc import Callable
from typing import Any


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made within a call took at a time.

    Every operation that PyTorch dispatches, those of the backward pass too, tells which tensors it
    makes; a storage counts from then until it is freed, once however many tensors share it. What
    the kernels take as workspace is not seen, nor are tensors that were there before the call.

    Args:
        function: What is measured.

    Returns:
        The number of bytes.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes: dict[int, int] = {}
    live = peak = 0

    def freed(key: int) -> None:
        nonlocal live
        live -= sizes.pop(key)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal live, peak
            before = {
                tensor.untyped_storage()._cdata
                for tensor in tree_leaves((args, kwargs))
                if isinstance(tensor, torch.Tensor)
            }
            results = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(results):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key in before or key in sizes:
                    continue
                sizes[key] = storage.nbytes()
                live += storage.nbytes()
                # PyTorch keeps the Python object of a storage for as long as the storage lives.
                weakref.finalize(storage, freed, key)
            peak = max(peak, live)
            return results

    with Counting():
        function()
    return peak
