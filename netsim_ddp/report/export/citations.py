"""Whom to cite: a BibTeX entry for every method, and each of its options, that a result used."""

from __future__ import annotations

import re
from collections.abc import Iterator

from netsim_ddp.methods import entry_of
from netsim_ddp.methods.citations import Citation, of_options, paper
from netsim_ddp.report.collection import Collection
from netsim_ddp.results.record import Cell

_DDP = paper(
    "li2020pytorch",
    "Li, Shen and Zhao, Yanli and Varma, Rohan and Salpekar, Omkar and Noordhuis, Pieter and Li, Teng and "
    "Paszke, Adam and Smith, Jeff and Vaughan, Brian and Damania, Pritam and Chintala, Soumith",
    "{PyTorch} Distributed: Experiences on Accelerating Data Parallel Training",
    "Proceedings of the VLDB Endowment", 2020, journal=True,
)  # fmt: skip
_NETSIM = Citation(
    "software", "netsim", (("title", "netsim: what gradient compression really buys on a slow network"),
    ("author", "{The netsim authors}"), ("year", "2026")),
)  # fmt: skip


def bibliography(collection: Collection) -> str:
    """The entries of all that appears, each once, as a BibTeX file; and netsim itself."""
    found: dict[str, str] = {}
    for source in collection.sources:
        trained = str(source.result.scenario.get("optimizer", "")).lower()
        for cell in source.result.cells:
            found |= {entry.key: entry.text for entry in _of(cell, trained)}
            if cell.citation:
                found[cell.method] = _own(cell.method, cell.citation)
    return "\n".join([*found.values(), _NETSIM.text])


def _own(method: str, citation: str) -> str:
    """What a user's own method gives as its citation: BibTeX as it is, else a note."""
    if citation.lstrip().startswith("@"):
        return citation.strip() + "\n"
    note = " ".join(citation.split())
    return Citation("misc", re.sub(r"\W", "_", method), (("note", note),)).text


def _of(cell: Cell, optimizer: str) -> Iterator[Citation]:
    entry = entry_of(cell.method)
    yield from entry.citations
    if cell.overlap:
        yield _DDP
    yield from of_options(entry.options, cell.params, optimizer)
