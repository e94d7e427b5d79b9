"""A collection as LaTeX tables (booktabs), one for each link, to be given to ``\\input``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netsim_ddp.report import outcomes
from netsim_ddp.report.collection import Block, Collection
from netsim_ddp.report.labels import basis, clean, step_header
from netsim_ddp.report.tables import columns_without, rows_of

# A page is narrower than a screen.
_DROPPED = frozenset({"payload", "loss", "hidden", "wait", "opt", "elapsed", "eff"})
_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "±": r"$\pm$", "–": "--", "×": r"$\times$",
}  # fmt: skip


def document(collection: Collection) -> str:
    """The tables, with the packages that they need in a comment above."""
    blocks = [block for block in collection.blocks if any(cell.summary for cell in block.cells)]
    head = "% needs \\usepackage{booktabs,textcomp}\n"
    tables = [_block(block) for block in blocks]
    for block in collection.blocks:
        if rows := outcomes.rows(block):
            caption = f"{block.heading}. {outcomes.NOTE}"
            tables.append(_table(caption, outcomes.HEADERS, rows))
    return head + ("\n".join(tables) or "% no cell was measured\n")


def text(value: str) -> str:
    """``value`` with every sign that LaTeX would obey written out; beyond Latin-1, a question mark."""
    shown = "".join(_SIGNS.get(char, char) for char in clean(value))
    return shown.encode("latin-1", "replace").decode("latin-1")


def _block(block: Block) -> str:
    cells = block.cells
    labels = {id(entry.cell): entry.label for entry in block.entries}
    columns = columns_without(_DROPPED, step_header(cells), replayed=False)
    rows = [
        [labels[id(row.cell)] if column.name == "method" else column.text(row) for column in columns]
        for row in rows_of(cells)
    ]
    caption = f"{block.heading}: {basis(cells)}; MB per rank and step."
    return _table(caption, [column.header.replace("\n", " ") for column in columns], rows)


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" & ".join(text(cell) for cell in row) for row in (headers, *rows)]
    body = "".join(f"{line} \\\\\n" for line in lines[1:])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{text(caption)}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}\n"
        f"\\toprule\n{lines[0]} \\\\\n\\midrule\n{body}\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )
