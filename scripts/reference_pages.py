"""Writes docs/reference/settings.md from ferryman.config, cli.md from the commands, and the table of states.md.

Run without arguments it writes them; with --check it only says which are not up to date.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from ferryman import config
from ferryman.cli.root import EXIT_CODES, root
from ferryman.job import TRANSITIONS, State

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
BEGIN = "<!-- transitions: written by scripts/reference_pages.py -->"
END = "<!-- end of transitions -->"

SETTINGS_HEAD = """\
# Settings

<!-- Written by scripts/reference_pages.py from src/ferryman/config.py; change it there. -->

Code has precedence over the environment, and that over the file `ferryman.toml`: see
[how to configure](../how-to/configuration.md). Sections of the file are written in brackets.
"""

CLI_HEAD = """\
# Command line

<!-- Written by scripts/reference_pages.py from the commands in src/ferryman/cli/; change them there. -->

Every command says what it does with `--help`. `--url` names the store for one command; `--json` prints one
object a line. A job's id may be shortened to its first digits, six at least.
"""


def main(arguments: list[str]) -> int:
    pages = {
        FOLDER / "settings.md": settings_page(),
        FOLDER / "cli.md": cli_page(),
        FOLDER / "states.md": with_transitions((FOLDER / "states.md").read_text(encoding="utf-8")),
    }
    stale = [page for page, text in pages.items() if not is_same(page, text)]
    if arguments == ["--check"]:
        for page in stale:
            print(f"{page.name} does not show what the code has; run: make docs")
        return 1 if stale else 0
    for page in stale:
        page.write_text(pages[page], encoding="utf-8")
    return 0


def is_same(page: Path, text: str) -> bool:
    return page.exists() and page.read_text(encoding="utf-8") == text


# -- settings --------------------------------------------------------------------------------------------


def settings_page() -> str:
    parts = [SETTINGS_HEAD]
    fields = msgspec.structs.fields(config.Settings)
    sections = [("", config.Settings), *((each.name, each.type) for each in fields if is_section(each.type))]
    for name, section in sections:
        title = f"`[{name}]`" if name else "At the top"
        intro = f"{inspect.getdoc(section)}\n\n" if name else ""
        parts.append(f"## {title}\n\n{intro}{settings_table(name, section)}")
    return "\n".join(parts)


def settings_table(name: str, section: type[msgspec.Struct]) -> str:
    meanings = field_docs(section)
    lines = ["| setting | type | default | environment | meaning |", "|---|---|---|---|---|"]
    for field in msgspec.structs.fields(section):
        if is_section(field.type):
            continue
        variable = "_".join(part.upper() for part in ("ferryman", name, field.name) if part)
        default = msgspec.json.encode(field.default).decode()
        cells = (
            f"`{field.name}`",
            field.type.__name__,
            f"`{default}`",
            f"`{variable}`",
            meanings.get(field.name, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def field_docs(section: type) -> dict[str, str]:
    """What the strings below the fields of a class say."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


# -- command line ----------------------------------------------------------------------------------------


def cli_page() -> str:
    context = click.Context(root, info_name="ferryman")
    parts = [CLI_HEAD, section("ferryman", root), paragraphs(EXIT_CODES)]
    for path, command in commands(root, context):
        parts.append(section(path, command))
    return "\n".join(parts)


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, in the order in which the group lists them."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        yield inner.command_path, command
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def section(title: str, command: click.Command) -> str:
    parts = [f"## {title}\n"]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    if arguments:
        words = " ".join(each.metavar or (each.name or "").upper() for each in arguments)
        parts.append(f"`{title} {words}`\n")
    if command is not root:
        parts.append(paragraphs(command.help or ""))
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *map(option_row, options)]) + "\n")
    return "\n".join(parts)


def paragraphs(help: str) -> str:
    """Help as click takes it: paragraphs are filled, save those that begin with a backspace."""
    parts: list[str] = []
    for paragraph in inspect.cleandoc(help).split("\n\n"):
        if paragraph.startswith("\b"):
            title, _, lines = paragraph.removeprefix("\b\n").partition("\n")
            parts.append(f"{title}\n\n```text\n{textwrap.dedent(lines).rstrip()}\n```\n")
        else:
            parts.append(" ".join(paragraph.split()) + "\n")
    return "\n".join(parts)


def option_row(option: click.Option) -> str:
    value = "" if option.is_flag else f" {value_of(option)}"
    meaning = option.help or ""
    if option.show_default and not option.is_flag:
        meaning = f"{meaning} The default is {option.default}.".strip()
    if option.multiple:
        meaning += " Can be given several times."
    return f"| `{', '.join(option.opts)}{value}` | {meaning} |".replace("\n", " ")


def value_of(option: click.Option) -> str:
    """What stands behind an option."""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return ", ".join(map(str, option.type.choices))
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType)):
        return "N"
    return option.type.name.upper()


# -- states ----------------------------------------------------------------------------------------------


def with_transitions(page: str) -> str:
    """The page with a fresh table between its two marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"states.md has lost the marks {BEGIN!r} and {END!r}")
    lines = ["| from | to |", "|---|---|"]
    for before, after in TRANSITIONS.items():
        lines.append(f"| {label(before)} | {', '.join(label(state) for state in sorted(after))} |")
    return f"{head}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{tail}"


def label(state: State | None) -> str:
    return "(enqueued)" if state is None else state.label


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
