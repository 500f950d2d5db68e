"""mesh: a device mesh whose replicate dimension compresses, for frameworks that shard on a native mesh."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..engine.agreement import agree
from ..engine.options import Options
from ..routes.choose import settle
from .joining import connect_ranks, patience
from .mesh_group import GradientGroup
from .mesh_internals import twin
from .mesh_steps import MESH, Steps


def mesh(
    mesh: DeviceMesh,
    dim: str,
    reducer: Reducer | Compressor,
    *,
    seed: int = 0,
    timeout: timedelta | float | None = None,
) -> DeviceMesh:
    """A mesh like ``mesh`` over whose dimension ``dim`` gradients are averaged by ``reducer``. Every rank calls it,
    with equal arguments.

    ``mesh = cc.mesh(mesh, "replicate", cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")))``, and then
    ``fully_shard(module, mesh=mesh)`` with two dimensions (HSDP), or FSDP2's ``replicate(module, mesh=mesh)`` with one.

    Only what FSDP2 sends over ``dim`` in a backward pass changes: each unit's gradient, this rank's shard of it. Its
    reduce-scatters and all-gathers over other dimensions are as before, and so is all that is sent over ``dim`` else
    (see ``GradientGroup``). On W ranks of ``dim`` the sum is W times the reducer's mean.

    ``hook = mesh.get_group("replicate").bind(model)``, before the first backward pass, gives parameters their names and
    shapes; ``hook`` is an ``Attachment``. Without it what arrives is flat: unit k, the k-th all-reduce of a backward
    pass, is one matrix "unit k" with rows of 1024 elements, in which nothing is known of parameters; vectors (biases,
    norms), which otherwise travel exact, are coded with the rest, and memory cannot be saved.

    Args:
        mesh: of any number of dimensions, with names. Flatten dimensions of what is returned, not of this one.
        dim: the dimension's name: "replicate", in torchtitan "dp_replicate".
        reducer: a reducer or a compressor. Its memory is that of this rank's shards.
        seed: of all random numbers; equal on all ranks.
        timeout: seconds (or timedelta) that one collective may take; None: torch's default, 30 minutes.

    Raises:
        TypeError: ``mesh`` is no DeviceMesh, or ``reducer`` no reducer.
        ValueError: ``mesh`` has no dimension ``dim``, or compresses there already; this rank is not in it; or the ranks
            of the mesh differ in reducer or seed (``AgreementError``, on every one of them).
    """
    if not isinstance(mesh, DeviceMesh):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"mesh({type(mesh).__name__}): a DeviceMesh is needed, such as torch.distributed.device_mesh."
            f'init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")).'
        )
    names = mesh.mesh_dim_names or ()
    if dim not in names:
        have = f"it has {', '.join(map(repr, names))}" if names else "its dimensions have no names (mesh_dim_names=...)"
        raise ValueError(f"mesh(dim={dim!r}): {mesh!r} has no such dimension: {have}.")
    if mesh.get_coordinate() is None:
        raise ValueError(f"mesh: this rank is not in {mesh!r}. Call it on the ranks of the mesh alone.")
    inner, device = mesh.get_group(dim), torch.device(mesh.device_type)
    if device.type != "cpu":
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    if isinstance(inner, GradientGroup):
        raise ValueError(
            f"mesh(dim={dim!r}): gradients are compressed there already. Give the mesh that was there before, or "
            f"combine reducers with cc.Partition({{...}}) or cc.Warmup(...)."
        )
    every: list[int] = sorted(mesh.mesh.flatten().tolist())
    failure: Exception | None = None
    options = seconds = None
    try:
        options, seconds = Options(reducer, seed=seed, host=MESH), patience(timeout, "mesh")
        settle(reducer, inner.size())
    except Exception as error:
        failure = error
    meeting = connect_ranks(every, device, seconds if failure is None else timedelta(seconds=30), like=inner)
    try:
        agree(meeting, {"dim": dim, "reducer": repr(reducer), "seed": seed}, failure, host=MESH)
    finally:
        meeting.close()
    assert options is not None
    steps = Steps(inner, options, device, seconds)  # before the group: a rank that declines makes none
    group = twin(GradientGroup, inner, steps)
    if len(names) == 1:
        return DeviceMesh.from_group(group, mesh.device_type, mesh_dim_names=names)
    groups: list[Any] = [group if name == dim else mesh.get_group(name) for name in names]
    return DeviceMesh.from_group(groups, mesh.device_type, mesh=mesh.mesh, mesh_dim_names=names)
