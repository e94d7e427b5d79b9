"""``netsim report``: results that are there already, as a page, a table, a file for a service or a paper."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.options import Text
from netsim_ddp.cli.output import check_targets, write_to
from netsim_ddp.cli.saving import SAVED
from netsim_ddp.cli.streams import open_console, say
from netsim_ddp.errors import UsageError
from netsim_ddp.units import counted

if TYPE_CHECKING:
    from netsim_ddp.report.collection import Collection

LAST = SAVED / "last.json"
_EXPORTERS = {
    "--html": ("html", "page"),
    "--markdown": ("markdown", "document"),
    "--csv": ("tidy", "table"),
    "--junit": ("junit", "document"),
    "--latex": ("latex", "document"),
    "--bibtex": ("citations", "bibliography"),
    "--github-benchmark": ("ci", "github_benchmark"),
    "--bencher": ("ci", "bencher"),
}
"""By flag the module of ``netsim_ddp.report.export``, imported when it is asked for, and the function that makes it."""


def report(
    results: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RESULT.json...|last|FILE.netsim]",
            help="Result files; several are put beside each other, never mixed. [last: the newest run here] Or one "
            "recording.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Text, typer.Option(metavar="PATH|-", help="One page: plots, tables, no network, light and dark.")
    ] = None,
    markdown: Annotated[
        Text, typer.Option(metavar="PATH|-", help="For a pull request or a job's summary; details folded.")
    ] = None,
    csv: Annotated[
        Text, typer.Option(metavar="PATH|-", help="Tidy: every raw sample is a row (docs/reports.md).")
    ] = None,
    junit: Annotated[
        Text,
        typer.Option(metavar="PATH|-", help="JUnit XML: a test case per cell, a failure where it failed."),
    ] = None,
    latex: Annotated[Text, typer.Option(metavar="PATH|-", help="Tables for a paper (booktabs).")] = None,
    bibtex: Annotated[
        Text, typer.Option(metavar="PATH|-", help="Whom to cite: an entry for every method that ran.")
    ] = None,
    github_benchmark: Annotated[
        Text, typer.Option(metavar="PATH|-", help="For github-action-benchmark: customSmallerIsBetter.")
    ] = None,
    bencher: Annotated[Text, typer.Option(metavar="PATH|-", help="Bencher Metric Format.")] = None,
    trace: Annotated[
        Text, typer.Option(metavar="PATH|-", help="Of a recording, its steps for https://ui.perfetto.dev.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A file for every plot.", show_default=False)
    ] = None,
    format: Annotated[
        Text,
        typer.Option(
            metavar="NAMES",
            help="Of the figures: svg, pdf, png; with commas. pdf and png need matplotlib. [svg]",
        ),
    ] = None,
) -> None:
    """Show results again: a table here, or as HTML, Markdown, CSV, JUnit, LaTeX, BibTeX, figures and for services that
    keep benchmarks. Needs no torch."""
    targets = {
        "--html": html, "--markdown": markdown, "--csv": csv, "--junit": junit, "--latex": latex,
        "--bibtex": bibtex, "--github-benchmark": github_benchmark, "--bencher": bencher, "--trace": trace,
    }  # fmt: skip
    wanted = {flag: target for flag, target in targets.items() if target is not None}
    for flag, target in wanted.items():
        if target.startswith("--"):
            raise UsageError(f"{flag} needs a file", hint=f"write {flag} PATH, or {flag} - for stdout")
    check_targets(wanted)
    formats = [name.strip() for name in (format or "svg").split(",") if name.strip()]
    if format is not None and figures is None:
        raise UsageError(
            "--format says how figures are written, and none are asked for", hint="add --figures DIR"
        )
    if figures is not None:
        from netsim_ddp.report.export.figures import needs

        needs(formats)
    if results and any(_is_recording(name) for name in results):
        _report_recording(results, wanted | ({} if figures is None else {"--figures": str(figures)}))
        return
    if trace is not None:
        raise UsageError(
            "--trace is of a recording, and a result file holds no moments",
            hint="netsim run --trace-steps PATH",
        )
    collection = _collect(results or ["last"], recordings="--html" in wanted)
    for flag, target in wanted.items():
        module, name = _EXPORTERS[flag]
        exporter = importlib.import_module(f"netsim_ddp.report.export.{module}")
        _write(target, getattr(exporter, name)(collection))
    if figures is not None:
        from netsim_ddp.report.export.figures import write

        written = write(collection, figures, formats)
        say(f"wrote {counted(len(written), 'figure')} to {figures}")
    if not wanted and figures is None:
        show_results(collection)


def _write(target: str, text: str) -> None:
    write_to(target, text)
    if target != "-":
        say(f"wrote {target}, {len(text.encode()) / 1e3:.0f} kB")


def _is_recording(name: str) -> bool:
    from netsim_ddp.results.recording_file import is_recording

    return is_recording(Path(name))


def _report_recording(names: list[str], wanted: dict[str, str]) -> None:
    from netsim_ddp.cli.show import measured_recording, show_recording

    path = Path(next(name for name in names if _is_recording(name)))
    if len(names) > 1:
        raise UsageError("a recording is reported alone", hint=f"netsim report {path} and no other file")
    if other := next((flag for flag in wanted if flag not in ("--html", "--trace")), None):
        raise UsageError(
            f"{other} is of results, and {path} is a recording", hint="--html PATH or --trace PATH"
        )
    if not wanted:
        show_recording(path)
        return
    recording, top = measured_recording(path)
    for flag, target in wanted.items():
        if flag == "--html":
            from netsim_ddp.report.export.recording_page import recording_page

            _write(target, recording_page(recording, top, path.stat().st_size))
        else:
            from netsim_ddp.report.export.trace import recording_trace

            _write(target, recording_trace(recording))


def _collect(names: list[str], *, recordings: bool) -> Collection:
    """What the files hold; with the ``recordings`` that were played, where they are at hand."""
    from netsim_ddp.report.collection import Collection, Source
    from netsim_ddp.report.recordings import at_hand
    from netsim_ddp.results.files import load

    sources = []
    for name in names:
        path = Path(name)
        if name == "last" and not path.exists():
            path = LAST
            if not path.exists():
                raise UsageError(
                    f"there is no last run: {LAST} does not exist here",
                    hint="name a result file, or run one first",
                )
        # A link to the newest run is told by the run's own name.
        shown = path.resolve() if path == LAST else path
        result = load(path)
        here, missing = at_hand(result, str(shown)) if recordings else ([], [])
        sources.append(Source(shown.name, result, tuple(here)))
        for each in missing:
            say(f"{each} is not here, or is another recording by now: the page has no chart of its steps")
    return Collection(sources)


def show_results(collection: Collection) -> None:
    """Print every file of ``collection`` as the command printed it that made it."""
    from rich.text import Text as RichText

    from netsim_ddp.report.terminal.result import render_result
    from netsim_ddp.report.terminal.selections import render_selections
    from netsim_ddp.report.terminal.sweep import render_sweep
    from netsim_ddp.report.terminal.training import render_training
    from netsim_ddp.results.labels import clean

    console = open_console(highlight=False)
    for number, source in enumerate(collection.sources):
        if len(collection.sources) > 1:
            console.print(RichText(("\n" if number else "") + clean(source.name), style="bold"))
        if any(cell.axes for cell in source.result.cells):
            render_sweep(source.result, console)
        elif source.result.kind == "training":
            render_training(source.result, console)
        else:
            render_result(source.result, console)
        render_selections(source.result, console)
