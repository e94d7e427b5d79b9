"""What one rank saw, as a recording."""

from __future__ import annotations

import datetime
import os
import sys

import torch
import torch.distributed as dist

from netsim_ddp import __version__
from netsim_ddp.results.fields import Tool
from netsim_ddp.results.recording import Bucket, Gradients, Overhead, Parameter, RankSteps, Recording
from netsim_ddp.units import counted
from netsim_ddp.workloads.recording import fsdp2
from netsim_ddp.workloads.recording.ddp import hook_name
from netsim_ddp.workloads.recording.found import class_of, device_of, type_name
from netsim_ddp.workloads.recording.gradients import BLOCK
from netsim_ddp.workloads.recording.session import Session
from netsim_ddp.workloads.recording.steps import as_step, lengths


def world_here() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def assembled(session: Session, *, rank: int) -> Recording:
    """One rank's recording; ``begin_s`` of its steps is on the host's clock, since the machine started."""
    trained, watch, buckets, sets = session.trained, session.watch, session.buckets, session.sampling.sets
    named = list(trained.parameters.items())
    order = session.order
    kept = [session.sampling.kept[each] for each in order] if session.sampling.kept else []
    whole = kept == [named[each][1].numel() for each in order]
    notes = list(trained.notes)
    if watch.left_out:
        notes.append(
            f"left out: {counted(watch.left_out, 'step')} with gradients that were not finite, or an "
            "evaluation of the model"
        )
    timed = [step for step in watch.closed if step.kind == "on"]
    if all(forward is backward for step in timed for forward, backward, _ in step.passes):
        notes.append("forward was not seen: its time is counted as data")
    if (
        trained.ddp is not None
        and trained.ddp.require_backward_grad_sync
        and any(len(s.passes) > 1 for s in timed)
    ):
        notes.append(
            "a step has several passes: if each exchanges (no no_sync), the last one's exchange is here"
        )
    if session.sharded is not None:
        notes += fsdp2.notes(session.sharded.gathered_bytes)
    device = device_of(trained)
    return Recording(
        tool=Tool(version=__version__),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source="ddp" if trained.ddp is not None else "fsdp2" if trained.sharding else "plain",
        program=list(sys.argv),
        environment={},
        model=class_of(trained),
        hook=None if trained.ddp is None else hook_name(trained.ddp),
        world_size=world_here(),
        batch_size=session.batch,
        parameters=[
            Parameter(
                name=named[each][0], shape=list(named[each][1].shape), dtype=type_name(named[each][1].dtype)
            )
            for each in order
        ],
        buckets=[
            Bucket(
                parameters=[named[each][0] for each in bucket],
                numel=numel,
                dtype=type_name(dtype),
            )
            for bucket, (numel, dtype) in zip(buckets, session.sizes, strict=True)
        ],
        ranks=[
            RankSteps(
                rank=rank,
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                steps=[as_step(step, watch.clock, buckets) for step in timed],
            )
        ],
        gradients=Gradients(
            kind="synthetic" if session.sharded else "none" if not sets else "full" if whole else "sampled",
            steps=[each.number for each in sets],
            block=BLOCK,
            kept=kept if sets else [],
            scales=[each.scales for each in sets],
        ),
        overhead=Overhead(on_s=lengths(watch, "on"), off_s=lengths(watch, "off")),
        notes=notes,
    )
