"""What every command says of words that it cannot use: an unknown flag, one given twice, a file without its flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netsim_ddp.errors import UsageError
from netsim_ddp.units import counted

LISTS: Mapping[str, tuple[str, ...]] = {"predict": ("workers", "bandwidth", "delay")}
"""By command the flags that take several values there, separated by commas, beside those whose help says so."""
_EXTRA = "Got unexpected extra argument"


def check_words(command: Any) -> None:
    """Have ``command``, and each command below it, refuse a flag for one value that is given several, of which click
    would take the last without a word."""
    for below in getattr(command, "commands", {}).values():
        check_words(below)
    make_parser = command.make_parser

    def made(context: Any) -> Any:
        parser = make_parser(context)
        single = {id(each): each for each in (*parser._long_opt.values(), *parser._short_opt.values())}
        actions = {"store": "append", "store_const": "append_const"}
        flags: dict[str, Any] = {}
        for option in single.values():
            if option.action in actions:
                option.action = actions[option.action]
                flags[option.dest] = option.obj
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for key in flags.keys() & values.keys():
                # Of flags without a value the same one again says nothing new; --resume --fresh does.
                different = list(dict.fromkeys(values[key])) if _is_switch(values[key]) else values[key]
                if len(different) > 1:
                    raise _several(context.command.name, flags[key], different)
                values[key] = values[key][-1]
            return values, rest, order

        parser.parse_args = parse_once
        return parser

    command.make_parser = made


def _is_switch(values: Sequence[object]) -> bool:
    return all(isinstance(value, bool) for value in values)


def _several(command: str | None, option: Any, values: Sequence[object]) -> UsageError:
    flag, shown = option.opts[0], [str(value) for value in values]
    if _is_switch(values):
        return UsageError(f"{flag} and {option.secondary_opts[0]} are both given", hint="keep one of them")
    listed = option.name in LISTS.get(command or "", ()) or str(option.metavar).endswith(",...")
    times = "twice" if len(shown) == 2 else counted(len(shown), "time")
    hint = f"write {flag} {','.join(shown)}" if listed else f"keep one: {flag} {shown[-1]}"
    return UsageError(f"{flag} is given {times}: {' and '.join(shown)}", hint=hint)


def describe(error: Any) -> str:
    """click's complaint in the form of our own: what is wrong, and in brackets what to type."""
    context = getattr(error, "ctx", None)
    see = f"{context.command_path if context else 'netsim'} --help lists what it takes"
    if near := getattr(error, "possibilities", None):
        see = f"did you mean {' or '.join(sorted(near))}? {see}"
    text = str(getattr(error, "message", "") or error.format_message()).rstrip(".")
    if context is not None and text.startswith(_EXTRA):
        word = text.partition("(s) (")[2].removesuffix(")")
        if instead := file_hint(context.command.name, word):
            return f"{word} is a file without a flag ({instead})"
    return f"{text[:1].lower()}{text[1:]} ({see})"


def file_hint(command: str | None, name: str) -> str | None:
    """What to type where the file ``name`` stands behind ``command`` without a flag; None where it is no such file."""
    from netsim_ddp.results.recording_file import is_recording

    path = Path(name)
    if path.suffix == ".netsim" or is_recording(path):
        if command in ("run", "predict", "probe", "advise"):
            return f"write netsim {command} --recording {name}"
        return f"netsim show {name} shows it, netsim run --recording {name} plays it"
    if not path.is_file() or path.suffix not in (".json", ".yaml", ".yml"):
        return None
    scenario = f"netsim sweep {name}" if command == "predict" else f"netsim {command} --config {name}"
    known = {
        "predict": f"netsim predict --validate {name}",
        "probe": f"netsim probe --from {name} -o link.yaml",
    }
    if path.suffix != ".json":
        return f"write {scenario}" if command in ("run", "train", "predict") else None
    if command in ("run", "train"):
        return f"write {scenario} to measure it again, or netsim show {name}"
    return f"write {known.get(command or '', f'netsim show {name}')}"
