"""What every host of whole parameters refuses: those of which each rank holds a part."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

NOT_YET = "which is not supported yet. Use DistributedDataParallel, or train without compcomm."
"""What ``attach`` adds."""


def check_whole(call: str, model: nn.Module, why: str = NOT_YET) -> None:
    """Whether no module within ``model`` is FSDP's, of either version.

    Raises:
        TypeError: one is.
    """
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
            raise TypeError(f"{call}({type(module).__name__}): its parameters are sharded by FSDP, {why}")


def check_whole_parameter(call: str, name: str, p: Tensor, why: str = NOT_YET) -> None:
    """Whether a parameter is an ordinary tensor.

    Raises:
        TypeError: it is a DTensor, or FSDP's flat one.
    """
    if isinstance(p, DTensor) or type(p).__name__ == "FlatParameter":
        raise TypeError(f"{call}: parameter {name!r} is sharded ({type(p).__name__}), {why}")
