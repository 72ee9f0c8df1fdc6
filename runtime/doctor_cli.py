"""`mtu-doctor`: parses, calls `mtu.runtime.doctor`, prints. Imports rich."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtu.runtime.backends import open_model
from mtu.runtime.console import USER_ERROR, new_app, run_app
from mtu.runtime.console.options import JsonOption, PluginLibraryOption, VersionOption
from mtu.runtime.doctor import Ability, Finding, Verdict, examine_abilities, examine_host, examine_model
from mtu.runtime.report import check_report, write_report

PROGRAM = "mtu-doctor"
COLOURS = {"yes": "green", "no": "red", "found": "green", "missing": "yellow", "broken": "red"}
app = new_app()


@app.command()
def doctor(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="An engine, a bundle or a chain: say also what can run it here.", show_default=False
        ),
    ] = None,
    plugin_library: PluginLibraryOption = None,
    json_file: JsonOption = None,
    version: VersionOption = False,
) -> None:
    """Says what works here now, then what was found, is missing or broken, and the line that fixes it.

    Exit code 2 if nothing here can run a model, or the one that is given.
    """
    if json_file is not None:
        check_report(json_file, *([str(model)] if model is not None else []))
    subject = open_model(model) if model is not None else None
    findings = examine_host(plugin_library)
    abilities = examine_abilities(findings)
    words, verdicts = examine_model(subject, findings) if subject is not None else ("", [])
    _print(abilities, findings, words, verdicts)
    if json_file is not None:
        report: dict[str, list[Any]] = {"works": abilities, "host": findings, "backends": verdicts}
        as_data = {name: [dataclasses.asdict(each) for each in found] for name, found in report.items()}
        write_report(json_file, {**as_data, "model": words})
    can_run = any(not verdict.reasons for verdict in verdicts) if subject is not None else abilities[0].works
    if not can_run:
        raise typer.Exit(USER_ERROR)


def _print(abilities: list[Ability], findings: list[Finding], words: str, verdicts: list[Verdict]) -> None:
    """Tables on a terminal, a line for each finding in a pipe."""
    rows = [(a.name, "yes" if a.works else "no", a.detail, "") for a in abilities]
    rows += [("", "", "", "")]
    rows += [(f.name, f.status, f.detail, f.fix) for f in findings]
    if not sys.stdout.isatty():
        for name, word, detail, fix in rows:
            print(f"{name}: {word}: {detail}" + (f" -> {fix}" if fix else "") if name else "")
        if words:
            print(words)
        for v in verdicts:
            print(f"{v.name}: {'cannot run it' if v.reasons else 'can run it'}")
            for reason in v.reasons:
                print(f"  {reason}")
        return
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, word, detail, fix in rows:
        text = Text.assemble(detail, (f"\n{fix}" if fix else "", "dim"))
        table.add_row(name, Text(word, style=COLOURS.get(word, "")), text)
    console.print(table)
    if words:
        console.print(f"\n{words}", markup=False, highlight=False)
    for v in verdicts:
        console.print(Text.assemble(v.name, " ", ("cannot run it", "red") if v.reasons else ("can run it", "green")))
        for reason in v.reasons:
            console.print(Text(f"  {reason}"))


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
