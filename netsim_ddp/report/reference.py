"""The reference of methods and their options, from the registry: for a terminal, and as docs/reference/methods.md."""

from __future__ import annotations

import textwrap

from netsim_ddp.methods import METHODS
from netsim_ddp.methods.entry import MethodEntry
from netsim_ddp.options import Option, written


def default_of(option: Option) -> str:
    """The default as it is written on the command line."""
    return "none" if option.default is None else written(option.default)


def taken_by(option: Option) -> str:
    """What the option takes: its choices, or in words."""
    return ", ".join(option.choices) if option.choices else option.takes


def facts(entry: MethodEntry) -> dict[str, str]:
    """What a reader may want to know beside the options: bytes, phases, and whom to cite."""
    papers = [dict(each.fields) for each in entry.citations]
    cited = (
        "; ".join(f"{each['title']} ({each['year']})" for each in papers).replace("{", "").replace("}", "")
    )
    return {"bytes on the wire per rank": entry.formula, "phases": ", ".join(entry.phases), "cite": cited}


def method_lines(name: str, width: int) -> list[str]:
    """The method, and a paragraph for each of its options, in lines of at most ``width``."""
    entry = METHODS[name]
    lines = textwrap.wrap(f"{name}: {entry.about}", width, subsequent_indent="  ")
    for label, text in facts(entry).items():
        lines += textwrap.wrap(f"{label}: {text}", width, initial_indent="  ", subsequent_indent="      ")
    for key, option in entry.options.items():
        lines.append(f"  {key}={default_of(option)}")
        text = f"{option.meaning}; takes {taken_by(option)}"
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return lines


def methods_page() -> str:
    """docs/reference/methods.md."""
    parts = [
        "# Methods and their options\n",
        "Made from the registry by `make reference`; `netsim scenarios methods` prints the same. On the command line: "
        "`--method NAME,option=value,...`. What they mean together, and in Python: [methods.md](../methods.md).\n",
    ]
    for name, entry in METHODS.items():
        rows = [
            f"| `{key}` | {taken_by(option)} | {default_of(option)} | {option.meaning} |"
            for key, option in entry.options.items()
        ]
        parts += [
            f"## `{name}`\n\n{entry.about[:1].upper()}{entry.about[1:]}.\n",
            "\n".join(f"- {label}: {text}" for label, text in facts(entry).items()) + "\n",
            "\n".join(["| option | takes | default | what it does |", "|---|---|---|---|", *rows]) + "\n",
        ]
    return "\n".join(parts)
