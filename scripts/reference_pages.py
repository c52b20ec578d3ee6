"""Writes docs/reference/settings.md from ferryman.config, cli.md from the commands, and the tables of states.md and
stores.md.

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
from ferryman.store.memory.store import MemoryStore
from ferryman.store.postgres.store import PostgresStore
from ferryman.store.records import Capabilities
from ferryman.store.redis.store import RedisStore
from ferryman.store.sqlite.store import SqliteStore

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
MARKS = "<!-- {0}: written by scripts/reference_pages.py -->", "<!-- end of {0} -->"
STORES = (MemoryStore, SqliteStore, RedisStore, PostgresStore)

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
object a line. A job's id may be shortened to its first digits, six at least, while no other id begins with them:
the first 12 are the moment at which it was made, and 20 are enough, save among many thousands of one batch.
"""


def main(arguments: list[str]) -> int:
    pages = {
        FOLDER / "settings.md": settings_page(),
        FOLDER / "cli.md": cli_page(),
        FOLDER / "states.md": with_table(FOLDER / "states.md", "transitions", transitions()),
        FOLDER / "stores.md": with_table(FOLDER / "stores.md", "capabilities", capabilities()),
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
        default = "–" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"
        cells = (
            f"`{field.name}`",
            type_of(field.type),
            default,
            f"`{variable}`",
            meanings.get(field.name, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def type_of(kind: Any) -> str:
    """As Python writes it: ``int``, or ``str or None``."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace(" | ", " or ")


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
    context = click.Context(root, info_name="ferryman", **root.context_settings)
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


# -- tables in pages ---------------------------------------------------------------------------------------


def with_table(page: Path, name: str, lines: Iterator[str]) -> str:
    """The page with a fresh table between its two marks."""
    begin, end = (mark.format(name) for mark in MARKS)
    head, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"{page.name} has lost the marks {begin!r} and {end!r}")
    return f"{head}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{tail}"


def transitions() -> Iterator[str]:
    yield from ("| from | to |", "|---|---|")
    for before, after in TRANSITIONS.items():
        yield f"| {label(before)} | {', '.join(label(state) for state in sorted(after))} |"


def label(state: State | None) -> str:
    return "(enqueued)" if state is None else state.label


def capabilities() -> Iterator[str]:
    """A column for each store, a row for each thing that it says of itself."""
    found = [store.capabilities for store in STORES]
    yield f"| | {' | '.join(each.name for each in found)} |"
    yield "|---|" + "---|" * len(found)
    for field, meaning in field_docs(Capabilities).items():
        title = meaning.partition(".")[0]
        yield f"| {title} | {' | '.join(told(getattr(each, field)) for each in found)} |"


def told(value: bool | str) -> str:
    return value if isinstance(value, str) else "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
