"""A collection as JUnit XML: a suite per link, a test case per cell, a failure where a cell failed.

The attributes are those that the readers of CI services share (junit.xml of Ant); times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from netsim_ddp.report.assumptions import assumptions
from netsim_ddp.report.collection import Collection, Entry
from netsim_ddp.report.labels import milliseconds
from netsim_ddp.results.labels import clean
from netsim_ddp.units import format_bytes


def document(collection: Collection) -> str:
    """The whole XML document."""
    suites = []
    for block in collection.blocks:
        name = f"netsim: {block.title}"
        # ISO 8601 without a zone, as the schema has it.
        made = clean(block.source.result.created_utc)[:19]
        suites.append(ElementTree.Element("testsuite", name=name, timestamp=made))
        for entry in block.entries:
            _case(suites[-1], name, entry)
    return written(suites)


def written(suites: Sequence[ElementTree.Element]) -> str:
    """Suites of test cases as one document, counted."""
    root = ElementTree.Element("testsuites", name="netsim")
    root.extend(suites)
    for element in (*suites, root):
        element.set("tests", str(len(list(element.iter("testcase")))))
        for name, tag in (("failures", "failure"), ("skipped", "skipped"), ("errors", "error")):
            element.set(name, str(len(list(element.iter(tag)))))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, suite_name: str, entry: Entry) -> None:
    """Add the cell, and how it ended."""
    cell = entry.cell
    measured = math.fsum(
        max((math.fsum(step.elapsed_s for step in rank.steps) for rank in repeat.ranks), default=0.0)
        for repeat in cell.repeats
    )
    case = ElementTree.SubElement(
        suite, "testcase", classname=suite_name, name=clean(cell.id), time=f"{measured:.6f}"
    )
    if cell.error is not None:
        first = next((line for line in cell.error.splitlines() if line.strip()), "failed")
        failure = ElementTree.SubElement(case, "failure", message=clean(first), type="cell")
        failure.text = "\n".join(clean(line) for line in cell.error.splitlines())
        return
    trained = any(repeat.epochs for repeat in cell.repeats)
    if cell.summary is None and not trained:
        ElementTree.SubElement(case, "skipped", message="not run")
        return
    if cell.summary is not None:
        sent = format_bytes(cell.summary.tx_bytes_per_step)
        said = ", ".join(assumptions([cell], entry.source.result))
        words = f"step {milliseconds(cell.summary.step_s)} ms, {sent} sent per rank and step, {said}"
        ElementTree.SubElement(case, "system-out").text = words
