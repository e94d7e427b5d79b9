"""HTML and SVG built from tags: the one place where text becomes markup, so that nothing else can.

A child that is a plain string is text, whatever stands in it; only what :func:`tag` made is markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from netsim_ddp.results.labels import clean

# Elements without an end tag: HTML's void ones, and SVG's shapes, which XML wants closed.
_EMPTY = frozenset({"meta", "br", "col", "path", "rect", "line", "circle", "use"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable[str]


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """``tag("td", "a<b", class_="x")`` -> ``<td class="x">a&lt;b</td>``.

    Args:
        children: text, markup, or iterables of these.
        attributes: ``stroke_width`` is ``stroke-width``, ``class_`` is ``class``; None and False leave one out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        text = number(value) if isinstance(value, float) else clean(str(value))
        parts.append(attribute if value is True else f'{attribute}="{html.escape(text)}"')
    if name in _EMPTY:
        return Markup(f"<{' '.join(parts)}/>")
    return Markup(f"<{' '.join(parts)}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """The children one after the other, text escaped."""
    return Markup(
        "".join(
            _text(child) if isinstance(child, str) else "".join(_text(each) for each in child)
            for child in children
        )
    )


def number(value: float) -> str:
    """A coordinate: a tenth of a unit is finer than any screen."""
    return f"{value:.1f}".removesuffix(".0")


def _text(child: str) -> str:
    return child if isinstance(child, Markup) else html.escape(clean(child), quote=False)
