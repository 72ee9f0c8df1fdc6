"""How all commands show their help, and what they say of a command line that is wrong. Imports typer.

typer below 0.26 stands on the package click, later ones on a copy of it; only what both have is used here.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mtu.runtime.console.options import INPUT, OUTPUT

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that is wrong."""
OTHER = "Options"
"""The group of options that name none; the last on the page."""
COLUMN = 24
"""Where the texts begin."""
STRAY = ("--output", "--checkpoint")
"""What a word too many is probably the value of, if that option was not given."""


class Command(TyperCommand):
    """A command whose help has two columns, in the groups of its parameters (`rich_help_panel`)."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line: arguments, the options that cannot be left out, the others."""
        params = self.get_params(ctx)
        arguments = [_in_usage(p) for p in params if _is_argument(p)]
        needed = [f"{_short(p)} {_metavar(p)}" for p in params if p.required and not _is_argument(p)]
        return [*arguments, *needed, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """See the class."""
        _write_groups(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; keeps the words for `explain`."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A command with sub-commands, whose help looks like that of `Command`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The sub-commands, then the options."""
        _write_rows(
            formatter, "Commands", [(name, each.get_short_help_str(500)) for name, each in self.commands.items()]
        )
        _write_groups(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; keeps the words for `explain`."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)


def _write_groups(command: Any, ctx: Any, formatter: Any) -> None:
    groups: dict[str, list[tuple[str, str]]] = {INPUT: [], OUTPUT: []}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            title = getattr(param, "rich_help_panel", None) or (INPUT if _is_argument(param) else OTHER)
            groups.setdefault(title, []).append((_names(param), _text(param)))
    groups[OTHER] = groups.pop(OTHER)
    for title, rows in groups.items():
        if rows:
            _write_rows(formatter, title, rows)


def _write_rows(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    # formatter.write_dl would break option names at their hyphens.
    lines = [f"\n{title}:"]
    for name, text in rows:
        column = textwrap.wrap(text, formatter.width - COLUMN, break_on_hyphens=False)
        if len(name) > COLUMN - 4:  # it has a line of its own
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {head:{COLUMN - 2}}{line}" for head, line in zip_longest((name,), column, fillvalue="")]
    formatter.write("\n".join(lines) + "\n")


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _in_usage(argument: Any) -> str:
    name = _metavar(argument) + "..." * (argument.nargs == -1)
    return name if argument.required else f"[{name}]"


def _metavar(param: Any) -> str:
    if isinstance(param.default, int | float):
        return str(param.metavar or "N")
    return str(param.metavar or ("NAME" if _choices(param) else param.name.upper()))


def _short(param: Any) -> str:
    return str(min(param.opts, key=len))


def _names(param: Any) -> str:
    if _is_argument(param):
        return _metavar(param)
    names = ", ".join(sorted(param.opts, key=len))
    if param.is_flag:
        return " / ".join([names, *param.secondary_opts])
    return f"{names} {_metavar(param)}"


def _choices(param: Any) -> list[str]:
    kind = getattr(param, "type_descriptor", None) or param.type
    return [str(each) for each in getattr(kind, "choices", None) or ()]


def _text(param: Any) -> str:
    notes = [", ".join(_choices(param))]
    default, shown = param.default, getattr(param, "show_default", False)
    if isinstance(shown, str):
        notes.append(f"default: {shown}")
    elif shown and isinstance(default, str | int | float) and default is not False and default != "":
        notes.append(f"default: {'on' if default is True else default}")
    if param.required and not _is_argument(param):
        notes.append("required")
    noted = "; ".join(filter(None, notes))
    return f"{param.help or ''} [{noted}]" if noted else param.help or ""


def explain(error: Any) -> str:
    """What to say of a `UsageError`: what was got, what is allowed, and the command that was probably meant."""
    ctx, text = error.ctx, str(error.message)
    if hasattr(error, "option_name") and not hasattr(error, "possibilities"):
        return f"{error.option_name} {'takes no' if 'does not take' in text else 'needs a'} value"
    if ctx is None:  # typer knows no more
        return text
    words = ctx.meta.get(__name__, [])
    param: Any = getattr(error, "param", None)
    if isinstance(ctx.command, TyperGroup):
        return _explain_group(ctx, words)
    if hasattr(error, "possibilities"):
        near = error.possibilities
        how = f"did you mean {' or '.join(near)}?" if near else f"write it as: {ctx.get_usage().split(': ', 1)[1]}"
        return f"there is no option {error.option_name}; {' '.join(how.split())}"
    if type(error).__name__ == "MissingParameter":
        name = _metavar(param) if _is_argument(param) else " or ".join(param.opts)
        choices = f" ({', '.join(_choices(param))})" if _choices(param) else ""
        return f"{name}{choices} is missing; write: {_completed(ctx, words)}"
    if param is not None:
        return f"{_metavar(param) if _is_argument(param) else max(param.opts, key=len)}: {_bad_value(error, param)}"
    if extra := _parsed(ctx, words)[1]:
        return f"'{extra[0]}' is one word too many; write: {_completed(ctx, words)}"
    return text


def _explain_group(ctx: Any, words: list[str]) -> str:
    commands = ctx.command.commands
    given = next((word for word in words if not word.startswith("-")), "")
    near = get_close_matches(given, commands)
    if near:
        rest = words[words.index(given) + 1 :]
        return f"there is no command '{given}'; write: {shlex.join([ctx.command_path, near[0], *rest])}"
    lines = [_completed(type(ctx)(command, info_name=name, parent=ctx), words) for name, command in commands.items()]
    return f"say what is to be done; write: {', or: '.join(lines)}"


def _bad_value(error: Any, param: Any) -> str:
    text = str(error.message)
    if hasattr(error.__cause__, "errors"):  # pydantic's words, which do not name the value
        first = error.__cause__.errors()[0]
        text = re.sub("^Input|^Value error, ", lambda m: f"'{first['input']}'" if m[0] == "Input" else "", first["msg"])
        text = text.split(", unable to parse")[0]
    choices = _choices(param)
    if choices and (got := re.match(r"'(.*)' is not one of ", text)):
        near = get_close_matches(got[1], choices, n=1, cutoff=0.5)
        return f"'{got[1]}' is not one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
    return text.rstrip(".")


def _parsed(ctx: Any, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The values that `words` give, as strings, and the words too many: first those that an option would take."""
    try:
        values, extra, _ = ctx.command.make_parser(ctx).parse_args(list(words))
    except UsageError:
        return {}, []
    values = {name: value for name, value in values.items() if value and isinstance(value, str | list | tuple)}
    if not extra:
        return values, []
    arguments = [p.name for p in ctx.command.get_params(ctx) if _is_argument(p) and isinstance(values.get(p.name), str)]
    alone = [*(values[name] for name in arguments), *extra]
    alone.sort(key=lambda word: bool(_taking(ctx, word)))
    values |= zip(arguments, alone, strict=False)
    return values, alone[len(arguments) :]


def _taking(ctx: Any, word: str) -> list[Any]:
    """The options of which a word is one of the choices; none if it is a file."""
    options = [param for param in ctx.command.get_params(ctx) if not _is_argument(param)]
    return [param for param in options if word in _choices(param) and not Path(word).exists()]


def _completed(ctx: Any, words: list[str]) -> str:
    """The command line of `words` with what is missing in it, and without what is too much."""
    params = ctx.command.get_params(ctx)
    values, extra = _parsed(ctx, words)
    words = list(words)
    given = [word for p in params if _is_argument(p) and p.name in values for word in _listed(values[p.name])]
    place = words.index(given[-1]) + 1 if given and given[-1] in words else 0
    for param in params:
        if param.name in values:
            continue
        if extra and (param in _taking(ctx, extra[0]) or (not _taking(ctx, extra[0]) and set(STRAY) & set(param.opts))):
            words.insert(words.index(extra.pop(0)), _short(param))
        elif param.required and _is_argument(param):
            words.insert(place, _metavar(param))
            place += 1
        elif param.required and _metavar(param) == "OUTPUT" and len(given) > 1 and not Path(given[-1]).exists():
            words.insert(words.index(given[-1]), _short(param))
        elif param.required:
            one = _metavar(param) == "OUTPUT" and len(given) == 1
            words += [_short(param), _beside(given[0]) if one else _metavar(param)]
    for word in extra:
        words.remove(word)
    return shlex.join([*ctx.command_path.split(), *words])


def _listed(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list | tuple) else [str(value)]


def _beside(source: str) -> str:
    path = Path(source)
    return "out.mp4" if source == "-" else str(path.with_name(f"{path.stem}-sharp{path.suffix}"))
