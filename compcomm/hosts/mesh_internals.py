"""What is private to torch and has to be known of its process groups and of checkpointing: here and nowhere else.

Tried with torch 2.13; names that differ since 2.8 are looked up, and one that is missing is an error with torch's
version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

BACKEND = "compcomm"
"""What ``dist.get_backend`` says of a group of ours."""

_dist: Any = dist
_torch: Any = torch
_Base: Any = dist.ProcessGroup


class Twin(_Base):
    """A process group over the same ranks as ``inner`` and with its backends: each collective is ``inner``'s own, but
    for what a subclass has in its place. Its name and its entry in torch's tables are its own.

    Made by ``new_group(..., pg_options=arguments)``, through ``twin``.
    """

    def __init__(self, options: Any, inner: dist.ProcessGroup) -> None:
        super().__init__(options.group_rank, options.group_size)  # the form with a store makes no subclass
        self.inner: Any = inner
        self._called, self._said = "", ""
        for device in self.inner._device_types:
            backend = self.inner._get_backend(device)
            kind = _dist.Backend.backend_type_map.get(backend.name(), _Base.BackendType.CUSTOM)
            self._register_backend(device, kind, backend)
            self._set_default_backend(kind)

    # In torch before 2.13 a group's name is that of its backend, which is ``inner``'s here.
    def getGroupName(self) -> str:
        return self._called

    def setGroupName(self, name: str) -> None:
        self._called = name

    def getGroupDesc(self) -> str:
        return self._said

    def setGroupDesc(self, desc: str) -> None:
        self._said = desc

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc
    group_name, group_desc = property(getGroupName), property(getGroupDesc)

    def getBackendName(self) -> str:
        return BACKEND

    def shutdown(self) -> None:
        """The backends are ``inner``'s, which ends them."""

    abort = shutdown


def _passed_on(name: str) -> Any:
    def call(self: Twin, *arguments: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*arguments, **named)

    call.__name__ = name
    return call


# The base class has these of its own, but where a subclass has no method, torch goes on with the interpreter's lock in
# its hand, and comes to a stop where a thread of the backend waits for that.
for _name in (
    "allgather", "allgather_coalesced", "all_gather_single_coalesced", "allgather_into_tensor_coalesced", "allreduce",
    "allreduce_coalesced", "all_to_all_single", "alltoall_base", "barrier", "broadcast", "gather", "recv", "reduce",
    "recv_anysource", "reduce_scatter", "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced", "scatter",
    "send", "alltoall", "_allgather_base", "all_gather_single", "_reduce_scatter_base", "reduce_scatter_single",
    "monitored_barrier", "_start_coalescing", "_end_coalescing",
):  # fmt: skip
    if hasattr(_Base, _name):
        setattr(Twin, _name, _passed_on(_name))


def twin(kind: Callable[..., Twin], inner: dist.ProcessGroup, *arguments: Any) -> Any:
    """``kind(options, inner, *arguments)``, known to torch as a group over the ranks of ``inner``. Collective over
    these."""
    register: Any = dist.Backend.register_backend

    def make(options: Any, given: Any) -> Twin:
        return kind(options, inner, *given)

    register(BACKEND, make, extended_api=True, devices=["cpu", "cuda"])
    try:
        ranks = dist.get_process_group_ranks(inner)
        return dist.new_group(ranks, backend=BACKEND, pg_options=arguments, use_local_synchronization=True)  # pyright: ignore[reportArgumentType]
    finally:
        # Of no use any more, and while one is there, init_process_group("cpu:gloo") gives its group no default backend.
        _dist.Backend._plugins.pop(BACKEND.upper(), None)


def work(future: torch.futures.Future[Tensor]) -> Any:
    """A future as what collectives return: ``wait()`` is its, ``get_future()`` has a list of one tensor."""
    return _torch._C._distributed_c10d._create_work_from_future(future.then(lambda f: [f.value()]))


def recomputed() -> bool:
    """Whether this backward pass is one of activation checkpointing's, within another."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    code = CheckpointFunction.backward.__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
