"""Advice as one HTML file, like the page of results."""

from __future__ import annotations

from netsim_ddp.report.advice import facts, headline, note, table
from netsim_ddp.report.export.html import boxed, document
from netsim_ddp.report.markup import Markup, tag
from netsim_ddp.report.tables import Table
from netsim_ddp.results.advice import Advice


def advice_page(advice: Advice) -> str:
    """The whole page."""
    title = f"{advice.model}, {advice.workers} workers: which method?"
    environment = [(key, str(value)) for key, value in advice.environment.items()]
    body = (
        tag("header", tag("h1", title), tag("p", f"{advice.link} | {advice.created_utc}", class_="dim")),
        tag("section", tag("p", headline(advice)), class_="verdict", aria_label="Verdict"),
        tag(
            "section", tag("h2", "What to expect"), boxed(Table(("what", "value"), facts(advice)), words=True)
        ),
        tag("section", tag("h2", "All methods"), boxed(table(advice)), tag("p", note(advice), class_="dim")),
        tag(
            "section", tag("h2", "What is not known"), tag("ul", (tag("li", each) for each in advice.missing))
        )
        if advice.missing
        else "",
        tag("section", tag("h2", "In your own training"), tag("pre", tag("code", _lines(advice.snippet)))),
        tag(
            "section",
            tag("h2", "To find out more"),
            (tag("pre", tag("code", each)) for each in advice.commands),
        ),
        tag("section", tag("h2", "Environment"), boxed(Table(("what", "value"), environment), words=True)),
    )
    return document(title, body)


def _lines(text: str) -> list[str]:
    """Lines of code, as lines."""
    return [each for line in text.splitlines() for each in (line, Markup("\n"))]
