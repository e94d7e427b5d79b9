"""A collection as JUnit XML: a suite per link, a test case per cell, a failure where a cell failed.

The attributes are those that the readers of CI services share (junit.xml of Ant); times are seconds.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree

from netsim_ddp.report.collection import Block, Collection, Entry
from netsim_ddp.report.wording import clean, milliseconds
from netsim_ddp.units import format_bytes


def document(collection: Collection) -> str:
    """The whole XML document."""
    root = ElementTree.Element("testsuites", name="netsim")
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for block in collection.blocks:
        for key, value in _suite(root, block).items():
            totals[key] += value
    for key, value in totals.items():
        root.set(key, str(value))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, block: Block) -> dict[str, int]:
    name = f"netsim: {block.title}"
    suite = ElementTree.SubElement(root, "testsuite", name=name, timestamp=_time(block))
    cases = [_case(suite, name, entry) for entry in block.entries]
    counts = {"tests": len(cases), "failures": cases.count("failure"), "skipped": cases.count("skipped")}
    for key, value in counts.items():
        suite.set(key, str(value))
    suite.set("errors", "0")
    return counts


def _case(suite: ElementTree.Element, suite_name: str, entry: Entry) -> str:
    """Add the cell and say how it ended."""
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
        return "failure"
    trained = any(repeat.epochs for repeat in cell.repeats)
    if cell.summary is None and not trained:
        ElementTree.SubElement(case, "skipped", message="not run")
        return "skipped"
    if cell.summary is not None:
        sent = format_bytes(cell.summary.tx_bytes_per_step)
        words = f"step {milliseconds(cell.summary.step_s)} ms, {sent} sent per rank and step"
        ElementTree.SubElement(case, "system-out").text = words
    return "passed"


def _time(block: Block) -> str:
    """ISO 8601 without a zone, as the schema has it."""
    return clean(block.source.result.created_utc)[:19]
