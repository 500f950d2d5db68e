"""What every host of whole parameters refuses: those of which each rank holds a part."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

NOT_YET = "and here whole ones are needed. Shard the model by fully_shard(...) and call cc.attach, or use DDP."
"""What ``attach`` adds."""


def check_whole(call: str, model: nn.Module, why: str = NOT_YET) -> None:
    """Whether no module within ``model`` is FSDP's, of either version.

    Raises:
        TypeError: one is.
    """
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FullyShardedDataParallel" in kinds and why == NOT_YET:
            raise TypeError(
                f"{call}({type(module).__name__}): FullyShardedDataParallel does not say which unit a gradient is of, "
                f"so nothing can be remembered. Shard the model by fully_shard(...) and attach; or, for compressors "
                f"without memory, model.register_comm_hook(cc.FSDPState(compressor, model.process_group), "
                f"cc.fsdp_hook)."
            )
        if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
            raise TypeError(f"{call}({type(module).__name__}): its parameters are sharded by FSDP, {why}")


def check_whole_parameter(call: str, name: str, p: Tensor, why: str = NOT_YET) -> None:
    """Whether a parameter is an ordinary tensor.

    Raises:
        TypeError: it is a DTensor, or FSDP's flat one.
    """
    if isinstance(p, DTensor) or type(p).__name__ == "FlatParameter":
        raise TypeError(f"{call}: parameter {name!r} is sharded ({type(p).__name__}), {why}")
