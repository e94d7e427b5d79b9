"""A comparison as JUnit XML: a test case per cell, red exactly where the command that made it fails."""

from __future__ import annotations

from xml.etree import ElementTree

from netsim_ddp.errors import NetsimError
from netsim_ddp.report.export.junit import written
from netsim_ddp.report.terminal.compare import cell_lines
from netsim_ddp.results.comparison import Comparison
from netsim_ddp.results.labels import clean

SUITE = "netsim: base and new"


def document(comparison: Comparison) -> str:
    """The whole XML document. A cell that one side alone has is skipped; with ``--fail-on missing`` base's fails."""
    suite = ElementTree.Element("testsuite", name=SUITE, timestamp=clean(comparison.created_utc)[:19])
    for pair in comparison.pairs:
        case = _case(suite, pair.name)
        _fail(case, pair.failures, "regression")
        ElementTree.SubElement(case, "system-out").text = "\n".join(cell_lines(pair))
    for side, names in ((comparison.base, comparison.only_in_base), (comparison.new, comparison.only_in_new)):
        for name in names:
            case, why = _case(suite, name), f"only in {side}"
            if f"{name}: {why}" in comparison.failures:
                _fail(case, [why], "missing")
            else:
                ElementTree.SubElement(case, "skipped", message=clean(why))
    return written([suite])


def broken(error: BaseException) -> str:
    """The document of a comparison that there is none of: one test case, which failed."""
    suite = ElementTree.Element("testsuite", name=SUITE)
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, NetsimError):
        text = error.message + (f" ({error.hint})" if error.hint else "")
    _fail(_case(suite, "netsim"), [text], type(error).__name__)
    return written([suite])


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=SUITE, name=clean(name))


def _fail(case: ElementTree.Element, sentences: list[str], kind: str) -> None:
    if sentences:
        lines = [clean(sentence) for sentence in sentences]
        ElementTree.SubElement(case, "failure", message=lines[0], type=kind).text = "\n".join(lines)
