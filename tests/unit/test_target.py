"""From a target to the app, and what is said when there is none."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.errors import AppNotFound
from ferryman.worker.target import load_app

APP = "from ferryman.app import App\napp = App('memory://')\n"

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module to be written to the working directory, different in each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"target_of_test_{next(_numbers)}"
    yield name
    for loaded in [each for each in sys.modules if each.startswith("target_of_test_")]:
        del sys.modules[loaded]


def write(path: str, text: str = APP) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize("target", ["{}:app", "{}", "{}.py:app", "./{}.py", "{}:holder.inner"])
def test_an_app_is_found_by_module_or_file_with_or_without_attribute(module: str, target: str) -> None:
    write(f"{module}.py", APP + "class holder: inner = app\n")

    app = load_app(target.format(module))

    assert app is sys.modules[module].app


def test_a_file_elsewhere_is_imported_under_its_own_name(module: str) -> None:
    write(f"deep/down/{module}.py")

    app = load_app(f"deep/down/{module}.py:app")

    assert app is sys.modules[module].app


def test_a_file_in_a_package_is_imported_as_part_of_it(module: str) -> None:
    write(f"src/{module}/__init__.py", "")
    write(f"src/{module}/sub/__init__.py", "")
    write(f"src/{module}/sub/tasks.py", "from .. import __name__ as parent\n" + APP)

    app = load_app(f"src/{module}/sub/tasks.py:app")

    assert app is sys.modules[f"{module}.sub.tasks"].app


def test_the_only_app_is_found_whatever_its_name(module: str) -> None:
    write(f"{module}.py", APP.replace("app =", "ferry = alias ="))

    assert load_app(module) is sys.modules[module].ferry


def test_of_several_apps_the_one_named_app_is_meant(module: str) -> None:
    write(f"{module}.py", APP + "other = App('memory://')\n")

    assert load_app(module) is sys.modules[module].app


def test_several_apps_of_other_names_are_listed(module: str) -> None:
    write(f"{module}.py", APP.replace("app =", "first =") + "second = App('memory://')\n")

    with pytest.raises(AppNotFound, match="several apps, so name one; it has first, second"):
        load_app(module)


def test_a_module_without_an_app_says_how_to_make_one(module: str) -> None:
    write(f"{module}.py", "")

    with pytest.raises(AppNotFound, match=r"has no Ferryman app; make one, app = Ferryman\(\)"):
        load_app(module)


def test_a_misspelt_attribute_is_told_the_near_miss(module: str) -> None:
    write(f"{module}.py")

    with pytest.raises(AppNotFound, match=r"has no attribute 'aap'; did you mean app\?"):
        load_app(f"{module}:aap")


def test_an_attribute_that_is_no_app_is_called_what_it_is(module: str) -> None:
    write(f"{module}.py", APP + "number = 1\n")

    with pytest.raises(AppNotFound, match=r":number is no Ferryman app, but an int; it has app"):
        load_app(f"{module}:number")


def test_a_misspelt_module_is_told_the_near_miss(module: str) -> None:
    write(f"{module}.py")

    with pytest.raises(AppNotFound, match=f"no module '{module}x'.*did you mean {module}") as caught:
        load_app(f"{module}x:app")

    assert caught.value.__suppress_context__


def test_a_misspelt_submodule_is_told_the_near_miss(module: str) -> None:
    write(f"{module}/__init__.py", "")
    write(f"{module}/tasks.py")

    with pytest.raises(AppNotFound, match=f"did you mean {module}.tasks"):
        load_app(f"{module}.task:app")


def test_a_misspelt_file_is_told_the_near_miss(module: str) -> None:
    write(f"{module}.py")

    with pytest.raises(AppNotFound, match=rf"no file '{module}x.py'.*did you mean {module}\.py"):
        load_app(f"{module}x.py:app")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import surely_not_installed\n", "ModuleNotFoundError: No module named 'surely_not_installed'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError: "),
        ("import sys; sys.exit('no')\n", "SystemExit: no"),
    ],
)
def test_an_error_of_the_module_itself_is_told_and_kept(module: str, text: str, line: str) -> None:
    write(f"{module}.py", text)

    with pytest.raises(AppNotFound) as caught:
        load_app(f"{module}:app")

    assert f"the module {module!r} was found, but importing it raised {line}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_file_whose_name_is_taken_says_by_what(module: str) -> None:
    write("json.py")

    with pytest.raises(
        AppNotFound, match=r"cannot be imported as 'json'.*json/__init__\.py; rename the file"
    ):
        load_app("json.py:app")


def test_a_target_without_a_module_says_how_to_write_one() -> None:
    with pytest.raises(AppNotFound, match="write module:attribute"):
        load_app(":app")
