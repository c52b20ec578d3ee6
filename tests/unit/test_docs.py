"""The examples of README.md and docs/ do what their pages say.

Blocks of ``python`` are run page by page, in order, as one module. What a comment after a ``print`` says must be
printed. Where a page says ``<!-- a worker runs from here on -->``, which readers do not see, it gets one. Blocks
that define tests are given to pytest instead. Blocks of ``console`` may only use commands and options that exist,
and what they enqueue is enqueued; blocks of ``toml`` may only use settings that do. A block that cannot run here is marked ``python no-run``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import click
import psycopg
import pytest

import ferryman
from ferryman.app import App
from ferryman.cli.root import root
from ferryman.config import load_settings
from ferryman.face import Ferryman
from ferryman.job import State
from ferryman.options import Options
from tests.services.shared import postgres_url

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORKER = "<!-- a worker runs from here on -->"
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str
    line: int
    needs_worker: bool
    """The page asked for a worker between the block before and this one."""


def blocks(page: Path, kind: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        asked = WORKER in text[end : match.start()]
        if match[1] == kind:
            found.append(Block(match[1], match[2], line, asked))
            end = match.end()
    return found


def pages_with(kind: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, kind)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader tries things out: an empty directory, with no settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRYMAN_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def database_url() -> Iterator[str]:
    """A PostgreSQL database that a reader has made for this page."""
    name = f"docs_{os.getpid()}"
    with psycopg.connect(postgres_url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield urlunsplit(urlsplit(postgres_url())._replace(path=f"/{name}"))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


# -- python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_examples_of_a_page_run_and_print_what_they_say(
    page: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if "DATABASE_URL" in page.read_text(encoding="utf-8"):
        monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("database_url"))
    found = blocks(page, "python")
    code = [block for block in found if "\ndef test_" not in block.text]
    tests = [block for block in found if block not in code]

    run_as_module(page, code, monkeypatch)

    said = iter(capsys.readouterr().out.splitlines())
    for block in code:
        as_module, _, _ = block.text.partition('if __name__ == "__main__":')
        for promised in PRINTS.findall(as_module):
            assert promised in said, f"{name_of(page)} does not print {promised!r}"
    for number, block in enumerate(tests):
        run_as_tests(block, folder / f"test_{number}.py")


def run_as_module(page: Path, code: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", module)
    with ExitStack() as workers:
        try:
            for block in code:
                if block.needs_worker:
                    workers.close()
                    app = vars(module)["app"]
                    assert isinstance(app, Ferryman)
                    workers.enter_context(app.worker())
                # Errors name the page and the line in it.
                source = "\n" * (block.line - 1) + block.text
                exec(compile(source, str(page), "exec"), vars(module))
        finally:
            workers.close()
            for value in list(vars(module).values()):
                if isinstance(value, App):
                    value.close()


def run_as_tests(block: Block, path: Path) -> None:
    path.write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        capture_output=True,
        text=True,
        cwd=path.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_example_runs_with_a_worker_of_its_own(folder: Path) -> None:
    first = blocks(ROOT / "README.md", "python")[0]
    (folder / "app.py").write_text(first.text)
    program = Path(sys.executable).parent / "ferryman"
    with subprocess.Popen([program, "worker", "app:app"], stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            assert any("serves all queues" in line for line in worker.stderr)

            said = subprocess.check_output([sys.executable, "app.py"], text=True, cwd=folder)
        finally:
            worker.send_signal(signal.SIGTERM)
            # Its last words must find a reader, or it ends with the code of an interpreter that could not flush them.
            worker.communicate()

    (promised,) = PRINTS.findall(first.text)
    assert said.splitlines() == [promised]
    assert worker.returncode == 0


def test_the_first_example_is_ten_lines() -> None:
    first = blocks(ROOT / "README.md", "python")[0]

    lines = [line for line in first.text.splitlines() if line.strip()]

    assert len(lines) <= 10


# -- console ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("console"), ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if "|" in words:
            words = words[: words.index("|")]
        match words:
            case ["make", target, *_]:
                assert f"\n{target}: " in (ROOT / "Makefile").read_text(), f"make has no target {target}"
            case ["ferryman", *rest]:
                check_command(rest, line)
            case _:
                pass


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "console"):
        for line in block.text.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ ")


def check_command(words: list[str], line: str) -> None:
    context = click.Context(root, info_name="ferryman", **root.context_settings)
    command: click.Command = root
    options: set[str] = set()
    for word in words:
        options |= {"--help"}.union(*(param.opts for param in command.get_params(context)))
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{word!r} is no option in: {line}"
        elif isinstance(command, click.Group):
            names = command.list_commands(context)
            assert word in names, f"{word!r} is no command in: {line}"
            found = command.get_command(context, word)
            assert found is not None
            command = found


def shell_enqueues(page: Path) -> list[str]:
    """What a page, or the help that it shows, enqueues from a shell."""
    helps = (line for block in blocks(page, "text") for line in block.text.splitlines())
    return [line for line in (*commands(page), *helps) if line.startswith("ferryman enqueue ")]


@pytest.mark.parametrize("page", [page for page in PAGES if shell_enqueues(page)], ids=name_of)
def test_the_jobs_that_a_page_enqueues_from_a_shell_are_stored(page: Path, folder: Path) -> None:
    program = Path(sys.executable).parent / "ferryman"
    for line in shell_enqueues(page):
        words = [word for word in shlex.split(line, comments=True) if word != "--wait"]
        module, _, function = words[2].partition(".")
        parameters = [word.partition("=")[0] for word in words[3:] if re.match(r"\w+=", word)]
        parameters += re.findall(r'"(\w+)":', line)
        (folder / f"{module}.py").write_text(
            "from ferryman import Ferryman\n\napp = Ferryman()\n\n\n"
            f"@app.task\ndef {function}({', '.join(parameters)}): ...\n"
        )

        done = subprocess.run([program, *words[1:]], cwd=folder, capture_output=True, text=True)

        assert done.returncode == 0, line + done.stderr
        assert re.fullmatch(r"[0-9a-f]{32}\n", done.stdout)


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("toml"), ids=name_of)
def test_the_settings_files_of_a_page_are_understood(page: Path, folder: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = folder / f"{number}.toml"
        file.write_text(block.text)

        load_settings(environment={}, file=file)


# -- reference -------------------------------------------------------------------------------------------


def test_the_reference_names_everything_public() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")

    missing = [name for name in ferryman.__all__ if f"`{name}" not in page]
    missing += [name for name in Options.__struct_fields__ if f"`{name}`" not in page]

    assert missing == []


def test_the_reference_names_every_state() -> None:
    page = (ROOT / "docs" / "reference" / "states.md").read_text(encoding="utf-8")

    assert [state.label for state in State if f"**{state.label}**" not in page] == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached = {index}
    ahead = [index]
    while ahead:
        page = ahead.pop()
        for target in re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8")):
            linked = (page.parent / target).resolve()
            if linked not in reached and linked.is_relative_to(ROOT / "docs"):
                reached.add(linked)
                ahead.append(linked)

    assert sorted(set((ROOT / "docs").rglob("*.md")) - reached) == []
