"""``netsim show``: what a file of netsim holds, whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netsim_ddp.cli.streams import open_console

if TYPE_CHECKING:
    from rich.console import Console

    from netsim_ddp.results.recording import Recording


def show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recording, or any other file that netsim wrote.")
    ],
) -> None:
    """Show what a file holds: a recording's steps, buckets and gradients; of results, probes, launches, codec times and
    comparisons what their own commands print. Needs no torch."""
    from netsim_ddp.results.recording_file import is_recording

    if is_recording(file):
        show_recording(file)
        return
    from netsim_ddp.errors import UsageError
    from netsim_ddp.reading import one_line
    from netsim_ddp.results.files import decode, parse, read_bytes

    if file.suffix in (".yaml", ".yml"):
        raise UsageError(
            f"{one_line(str(file))} is no file that netsim wrote",
            hint=f"a scenario is run by netsim run --config {one_line(str(file))}",
        )
    data = decode(read_bytes(file), source=str(file))
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(data, dict) and "machine_info" in data and kind is None:
        raise UsageError(
            f"{one_line(str(file))} is of pytest-benchmark",
            hint=f"netsim compare {one_line(str(file))} OTHER.json",
        )
    if isinstance(data, dict) and (renderer := _renderers().get(str(kind))) is not None:
        from netsim_ddp.results.fields import validated

        model, render = renderer
        newest, version = model.model_fields["schema_version"].default, data.get("schema_version")
        if isinstance(version, int) and version > newest:
            raise UsageError(
                f"{one_line(str(file))} has schema version {version} of its kind; this netsim reads up to {newest}",
                hint="upgrade netsim",
            )
        render(validated(model, data, source=str(file)), open_console(highlight=False))
        return
    from netsim_ddp.cli.report import show_results
    from netsim_ddp.report.collection import Collection, Source

    show_results(Collection([Source(file.name, parse(data, source=str(file)))]))


def show_recording(path: Path) -> None:
    """Print what the recording ``path`` holds.

    Raises:
        UsageError: as :func:`netsim_ddp.results.recording_file.read_gradients`.
    """
    from netsim_ddp.report.terminal.recording import render_recording

    recording, top = measured_recording(path)
    render_recording(recording, top, path.stat().st_size, open_console(highlight=False))


def measured_recording(path: Path) -> tuple[Recording, list[float | None]]:
    """The recording ``path``, and of each set of its gradients the share of its energy in the largest 1% of entries.

    Raises:
        UsageError: as :func:`netsim_ddp.results.recording_file.read_gradients`.
    """
    from netsim_ddp.results.gradient_energy import top_share
    from netsim_ddp.results.recording_file import gradient_sets, read

    recording = read(path)
    return recording, [top_share(recording, each, number) for number, each in enumerate(gradient_sets(path))]


def _renderers() -> dict[str, tuple[Any, Callable[[Any, Console], None]]]:
    """By a file's kind its record, and what prints it."""
    from netsim_ddp.report.terminal.advice import render_advice
    from netsim_ddp.report.terminal.codec import render_codec_times
    from netsim_ddp.report.terminal.compare import render_comparison
    from netsim_ddp.report.terminal.launch import render_launch
    from netsim_ddp.report.terminal.probe import render_probe
    from netsim_ddp.report.terminal.validation import render_validation
    from netsim_ddp.results.advice import Advice
    from netsim_ddp.results.codec import KIND as CODEC
    from netsim_ddp.results.codec import CodecTimes
    from netsim_ddp.results.comparison import Comparison
    from netsim_ddp.results.launch import Launch
    from netsim_ddp.results.probe import Probe
    from netsim_ddp.results.validation import Validation

    return {
        "probe": (Probe, render_probe),
        "launch": (Launch, render_launch),
        CODEC: (CodecTimes, render_codec_times),
        "comparison": (Comparison, render_comparison),
        "validation": (Validation, render_validation),
        "advice": (Advice, render_advice),
    }
