"""A recording as one HTML file, like the page of results: a step over time, where steps went, the buckets."""

from __future__ import annotations

from collections.abc import Sequence

from netsim_ddp.report.charts.recorded import timelines
from netsim_ddp.report.charts.style import Looks
from netsim_ddp.report.export.html import boxed, document, figures
from netsim_ddp.report.markup import tag
from netsim_ddp.report.recordings import (
    MOST_BUCKETS,
    bucket_table,
    energy,
    header,
    held,
    more_buckets,
    origin,
    sentences,
    split_tables,
    watching,
)
from netsim_ddp.report.tables import Table
from netsim_ddp.results.recorded_steps import bucket_times, seen_steps
from netsim_ddp.results.recording import Recording


def recording_page(recording: Recording, top: Sequence[float | None], file_bytes: int) -> str:
    """The whole page.

    Args:
        top: of each set of gradients the share of its energy that the largest 1% of the entries hold.
        file_bytes: of the recording's file.
    """
    seen = seen_steps(recording)
    rows = bucket_times(recording, seen)
    said = [*sentences(recording, seen), f"The file: {held(recording, file_bytes)}", *energy(top)]
    said.append(watching(recording.overhead))
    environment = [(key, str(value)) for key, value in recording.environment.items()]
    body = (
        tag(
            "header",
            tag("h1", f"{recording.model}, recorded"),
            tag("p", header(recording)),
            tag("p", origin(recording), class_="dim"),
        ),
        tag("section", (tag("p", each) for each in said), class_="verdict", aria_label="What it holds"),
        figures("One step over time", timelines(recording, seen), Looks([])),
        tag(
            "section",
            tag("h2", "Numbers"),
            boxed(split_tables(seen)[0]),
            boxed(bucket_table(rows[:MOST_BUCKETS])),
            (tag("p", each) for each in more_buckets(rows)),
        ),
        tag("section", tag("h2", "Notes"), tag("ul", (tag("li", note) for note in recording.notes)))
        if recording.notes
        else "",
        tag("section", tag("h2", "Environment"), boxed(Table(("what", "value"), environment), words=True)),
    )
    return document(f"{recording.model}, recorded", body)
