"""How a parameter lies in flat memory: the order of its dimensions.

DDP's buckets, and the flat vectors of optimizers, hold a parameter as it lies in its own storage: a matrix that is
stored transposed comes transposed, a convolution in ``channels_last`` comes with its channels innermost. An *order*
says so: the dimensions from the outermost in memory to the innermost, (0, 2, 3, 1) for ``channels_last``; ``()`` is the
shape's own order, row-major, which nearly all parameters have.

Reducers see row-major buckets alone: the scheduler turns what lies otherwise, there and back. So matrices are what the
shape says, blocks and random numbers belong to the same elements, and state fits, whatever the memory format is: a
model in another one gives the same means to the bit. It costs two copies of what is turned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from torch import Tensor

Order = tuple[int, ...]


def storage_order(tensor: Tensor) -> Order:
    """The order of a tensor that fills its memory without gaps or overlaps.

    Dimensions of one element have no place of their own and stay where they are as far as they can. ``()`` also for a
    tensor that has gaps (a slice, an expanded one): whoever copies it into a buffer, DDP first of all, does so
    row-major.

    >>> import torch
    >>> storage_order(torch.zeros(2, 3, 5, 5).to(memory_format=torch.channels_last)), storage_order(torch.zeros(2, 3))
    ((0, 2, 3, 1), ())
    """
    if tensor.is_contiguous():
        return ()
    shape, strides = tensor.shape, tensor.stride()
    wide = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -strides[d])
    due = 1
    for d in reversed(wide):
        if strides[d] != due:
            return ()
        due *= shape[d]
    return complete(wide, shape)


def complete(wide: Iterable[int], shape: Sequence[int]) -> Order:
    """The order of all dimensions, where ``wide`` is that of those of more than one element."""
    rest = list(wide)
    found = [d if shape[d] == 1 else rest.pop(0) for d in range(len(shape))]
    return () if found == sorted(found) else tuple(found)


def turned(shape: Sequence[int], order: Order) -> tuple[int, int, int] | None:
    """(count, rows, columns) where row-major means that so many matrices are transposed: the order is the shape's own
    but that the innermost dimensions, from some place on, go before others. None: it takes more than that."""
    for lead in range(len(order)):
        if lead and order[lead - 1] != lead - 1:
            break
        split = order.index(lead)
        if [*order[split:], *order[lead:split]] == list(range(lead, len(order))):
            sizes = ([shape[d] for d in part] for part in (order[:lead], order[lead:split], order[split:]))
            count, rows, columns = map(prod, sizes)
            return count, rows, columns
    return None


def shaped(flat: Tensor, shape: Sequence[int], order: Order) -> Tensor:
    """``flat`` as a tensor of ``shape``: a view that aliases it."""
    if not order:
        return flat.view(tuple(shape))
    return flat.view([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
