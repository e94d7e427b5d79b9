"""Flags of the commands that hold two results against each other, what they mean, and where the answer goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netsim_ddp.cli.streams import open_console, write_document
from netsim_ddp.errors import Regression, UsageError

if TYPE_CHECKING:
    from netsim_ddp.results.compare import Rules
    from netsim_ddp.results.comparison import Comparison

FIGURES = (
    "median", "compute", "compress", "communicate", "wait", "decompress", "optimizer", "other", "accuracy", "loss",
)  # fmt: skip
KINDS = ("times", "bytes", "scores")
REASONS = ("regression", "inconclusive", "missing")


@dataclass
class CompareOptions:
    """What a comparison must show to fail, and where it is written."""

    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="FIGURE:NN%",
            help="Fail when a figure is worse by more: median:10% (the step), compress:20% and every other phase, "
            "accuracy:1% (points), loss:0.02; repeatable, or with commas. [median:5%]",
            show_default=False,
        ),
    ] = None
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="WHAT",
            help="Reasons to exit with 5: regression, inconclusive, missing; repeatable, or with commas. [regression]",
            show_default=False,
        ),
    ] = None
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="WHAT",
            help="times, bytes (all that does not vary: bytes, entries, bits), or scores. [all]",
            show_default=False,
        ),
    ] = None
    alpha: Annotated[
        float,
        typer.Option(
            "--alpha",
            metavar="P",
            min=1e-6,
            max=0.2,
            help="How often all comparisons together may claim a change between equal states (Holm's correction).",
        ),
    ] = 0.05
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="PATH|-",
            help="Write the comparison there too; - is stdout, and nothing else is.",
            show_default=False,
        ),
    ] = None
    markdown: Annotated[
        str | None,
        typer.Option("--markdown", metavar="PATH|-", help="The same as Markdown.", show_default=False),
    ] = None
    junit: Annotated[
        str | None,
        typer.Option(
            "--junit",
            metavar="PATH|-",
            help="The same as JUnit XML, a test case per cell: a failure wherever this command fails, and only there.",
            show_default=False,
        ),
    ] = None

    def rules(self) -> Rules:
        """The rules that the flags ask for, checked before anything is measured, as are the files.

        Raises:
            UsageError: an unknown word, a limit that is none, two documents for stdout, or a file that cannot be made.
        """
        from netsim_ddp.cli.output import check_targets
        from netsim_ddp.results.compare import Rules

        limits = dict(_limit(text) for text in _words(self.fail_above))
        reasons = [_known("--fail-on", word, REASONS) for word in _words(self.fail_on) or ["regression"]]
        kinds = KINDS if self.only is None else (_known("--only", self.only, KINDS),)
        check_targets({"--json": self.json, "--markdown": self.markdown, "--junit": self.junit})
        return Rules(
            alpha=self.alpha,
            limits=limits,
            only=frozenset(kinds),  # type: ignore[arg-type]  # checked against the same words
            fail_on=frozenset(reasons),  # type: ignore[arg-type]
        )

    def show(self, comparison: Comparison) -> None:
        """Write the comparison where it was asked for, and on stdout as text where nothing else is.

        Raises:
            Regression: it fails.
        """
        from netsim_ddp.report.export import gate
        from netsim_ddp.report.terminal import compare as report
        from netsim_ddp.results.files import to_json, write_whole
        from netsim_ddp.results.labels import clean

        documents = (
            (self.json, to_json(comparison)),
            (self.markdown, report.markdown(comparison)),
            (self.junit, gate.document(comparison)),
        )
        for path, text in documents:
            if path == "-":
                write_document(text)
        if "-" not in (self.json, self.markdown, self.junit):
            report.render_comparison(comparison, open_console(highlight=False))
        for path, text in documents:
            if path not in (None, "-"):
                write_whole(text, Path(str(path)))
        if comparison.failures:
            count = len(comparison.failures)
            more = f" and {count - 1} more" if count > 1 else ""
            raise Regression(f"{clean(comparison.failures[0])}{more}")

    @contextmanager
    def failing_junit(self) -> Iterator[None]:
        """Make whatever ends the command with another code than 0 a failure in its JUnit file: a file of an earlier run
        must not be left there to be read as this one's."""
        try:
            yield
        except Regression:
            raise  # its comparison has been written
        except BaseException as error:
            from netsim_ddp.report.export import gate
            from netsim_ddp.results.files import write_whole

            if self.junit == "-":
                write_document(gate.broken(error))
            elif self.junit is not None:
                write_whole(gate.broken(error), Path(self.junit))
            raise


def _words(texts: list[str] | None) -> list[str]:
    return [word.strip() for text in texts or () for word in text.split(",")]


def _known(flag: str, word: str, known: tuple[str, ...]) -> str:
    from netsim_ddp.names import suggest

    if word not in known:
        raise UsageError(f"{flag} {word!r} is not known here", hint=suggest(word, known))
    return word


def _limit(text: str) -> tuple[str, float]:
    """``median:10%`` -> ("median", 0.1); accuracy counts in points: ``accuracy:1%`` -> 1.0."""
    figure, colon, number = text.partition(":")
    hint = "write for example median:10%"
    if not colon:
        raise UsageError(f"--fail-above {text!r} is not FIGURE:NN%", hint=hint)
    _known("--fail-above", figure, FIGURES)
    percent = number.endswith("%")
    try:
        value = float(number.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000 or (not percent and figure not in ("accuracy", "loss")):
        if value >= 0 and not percent:
            hint = f"write {figure}:{number}%"
        raise UsageError(f"--fail-above {text!r} is not a limit in percent", hint=hint)
    return figure, value if figure == "accuracy" else value / 100 if percent else value
