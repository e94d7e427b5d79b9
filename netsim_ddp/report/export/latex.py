"""A collection as LaTeX tables (booktabs), one for each link, to be given to ``\\input``."""

from __future__ import annotations

from dataclasses import replace

from netsim_ddp.report import facts, outcomes
from netsim_ddp.report.collection import Collection
from netsim_ddp.report.tables import Table, block_table, measured_blocks
from netsim_ddp.results.labels import clean

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
    head = "% needs \\usepackage{booktabs,textcomp}\n"
    note = "; MB per rank and step."
    tables = [
        _table(block_table(block, _DROPPED, replayed=False, note=note))
        for block in measured_blocks(collection.blocks)
    ]
    tables += [
        _table(replace(each, title=f"{each.title}. {outcomes.NOTE}"))
        for each in facts.trained(collection.blocks)
    ]
    return head + ("\n".join(tables) or "% no cell was measured\n")


def text(value: str) -> str:
    """``value`` with every sign that LaTeX would obey written out; beyond Latin-1, a question mark."""
    shown = "".join(_SIGNS.get(char, char) for char in clean(value))
    return shown.encode("latin-1", "replace").decode("latin-1")


def _table(table: Table) -> str:
    lines = [" & ".join(text(cell) for cell in row) for row in (table.headers, *table.rows)]
    body = "".join(f"{line} \\\\\n" for line in lines[1:])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{text(table.title)}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(table.headers) - 1)}}}\n"
        f"\\toprule\n{lines[0]} \\\\\n\\midrule\n{body}\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )
