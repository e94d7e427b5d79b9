"""``netsim bench``: parts of a step on their own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from netsim_ddp.cli.expand import command
from netsim_ddp.cli.streams import open_console, write_document
from netsim_ddp.errors import UsageError
from netsim_ddp.units import parse_ratio

DEVICES = ("cpu", "cuda")
INPUTS = ("normal", "heavy", "equal", "zeros", "sorted", "recorded")
VALUES = ("fp32", "fp16", "bf16", "int8", "int8-stochastic")
INDICES = ("packed", "int32", "int64")
LARGEST = 2**31 - 1
_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9}
_T = TypeVar("_T")

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def _group(context: typer.Context) -> None:
    """Measure parts of a step on their own."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
@command
def compress(
    device: Annotated[str, typer.Option(metavar="NAME,...", help="cpu, cuda.")] = "cpu",
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads on the CPU.")] = "1",
    sizes: Annotated[
        str, typer.Option(metavar="N,...", help="Gradient sizes: 25557032, 10M.")
    ] = "1M,10M,25.6M,138M",
    ratios: Annotated[
        str,
        typer.Option("--ratios", "--ratio", metavar="FRACTION,...", help="Kept fractions: 0.01, 1%."),
    ] = "0.1,0.01,0.001",
    inputs: Annotated[
        str, typer.Option("--inputs", "--input", metavar="NAME,...", help=", ".join(INPUTS) + ".")
    ] = "normal",
    values: Annotated[str, typer.Option(metavar="FORMAT", help=", ".join(VALUES) + ".")] = "fp32",
    indices: Annotated[str, typer.Option(metavar="FORMAT", help=", ".join(INDICES) + ".")] = "packed",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Interleaved rounds.")] = 7,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write the times there too; - is stdout, and nothing else is."),
    ] = None,
) -> None:
    """Selection, encoding and decoding, beside the memory floor, torch.topk and numpy.argpartition."""
    chosen = {
        "devices": _list("--device", device, _one_of(DEVICES)),
        "threads": _list("--threads", threads, _threads),
        "sizes": _list("--sizes", sizes, _size),
        "ratios": _list("--ratios", ratios, lambda text: parse_ratio(text, what="--ratios")),
        "inputs": _list("--inputs", inputs, _one_of(INPUTS)),
    }
    for flag, name, known in (("--values", values, VALUES), ("--indices", indices, INDICES)):
        if name not in known:
            raise UsageError(f"{flag} {name!r} is not known", hint=f"choose from {', '.join(known)}")

    from netsim_ddp import __version__
    from netsim_ddp.cli.output import writable
    from netsim_ddp.cli.saving import SavedFiles
    from netsim_ddp.compression.codec import Codec
    from netsim_ddp.report.terminal.codec import render_codec_times
    from netsim_ddp.results.codec import CodecTimes
    from netsim_ddp.results.fields import Tool
    from netsim_ddp.results.files import now_utc, to_json
    from netsim_ddp.steps.environment import environment
    from netsim_ddp.tools.codec_bench import Plan, measure

    path = None if json in (None, "-") else writable(Path(str(json)))
    times = CodecTimes(
        tool=Tool(version=__version__),
        created_utc=now_utc(),
        environment=environment(),
        command=shlex.join(["netsim", *sys.argv[1:]]),
        values=values,
        indices=indices,
    )
    plan = Plan(rounds=rounds, codec=Codec(values, indices), **chosen)  # type: ignore[arg-type]  # one dict, many types
    progress, files = open_console(stderr=True), SavedFiles(None, path)
    with progress.status("warming up") as status:  # shows itself on a terminal only
        for row in measure(plan, status.update):
            times.rows.append(row)
            files.write(to_json(times))
    if json == "-":
        write_document(to_json(times))
        return
    times.rows.sort(key=lambda row: (row.device, row.threads, plan.inputs.index(row.input)))
    render_codec_times(times, open_console(highlight=False, soft_wrap=True))
    files.finish()


def _list(flag: str, text: str, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    """``"1M,10M"``: each part parsed, none twice."""
    found: list[_T] = []
    for part in text.split(","):
        try:
            value = parse(part.strip())
        except UsageError as error:
            message = error.message if error.message.startswith("--") else f"{flag} {error.message}"
            raise UsageError(message, hint=error.hint) from None
        if value not in found:
            found.append(value)
    return tuple(found)


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise UsageError(f"{text!r} is not known", hint=f"choose from {', '.join(known)}")
        return text

    return parse


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise UsageError(f"{text!r} is not a number from 1 to 1024", hint="write for example --threads 1,2")
    return int(text)


def _size(text: str) -> int:
    """``25.6M`` -> 25600000."""
    scale = _SCALES.get(text[-1:].lower(), 1)
    try:
        count = round(float(text if scale == 1 else text[:-1]) * scale)
    except (ValueError, OverflowError):
        count = 0
    if not 1 <= count <= LARGEST:
        raise UsageError(
            f"{text!r} is not a number of floats from 1 to {LARGEST}",
            hint="write for example --sizes 1M,25.6M",
        )
    return count
