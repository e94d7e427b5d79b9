"""The reference of methods and their options, from the registry: for a terminal, and as docs/reference/methods.md."""

from __future__ import annotations

import textwrap
from typing import Any

from netsim_ddp.methods import ABOUT, METHODS
from netsim_ddp.options import Option


def default_of(option: Option) -> str:
    """The default as it is written on the command line."""
    value: Any = option.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def taken_by(option: Option) -> str:
    """What the option takes: its choices, or in words."""
    return ", ".join(option.choices) if option.choices else option.takes


def method_lines(name: str, width: int) -> list[str]:
    """The method, and a paragraph for each of its options, in lines of at most ``width``."""
    lines = textwrap.wrap(f"{name}: {ABOUT[name]}", width, subsequent_indent="  ")
    for key, option in METHODS[name].items():
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
    for name, options in METHODS.items():
        parts.append(f"## `{name}`\n\n{ABOUT[name][:1].upper()}{ABOUT[name][1:]}.\n")
        rows = [
            f"| `{key}` | {taken_by(option)} | {default_of(option)} | {option.meaning} |"
            for key, option in options.items()
        ]
        parts.append(
            "\n".join(["| option | takes | default | what it does |", "|---|---|---|---|", *rows]) + "\n"
        )
    return "\n".join(parts)
