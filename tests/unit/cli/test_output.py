"""What is printed: plain in a pipe, coloured at a terminal, harmless always."""

from __future__ import annotations

import datetime
import io
import json
import sys

import click
import pytest

from ferryman.cli.output import Column, ago, clean, iso, json_line, stamps, table

COLUMNS = (Column("Queue", folds=True), Column("Ready", right=True))


class Terminal(io.StringIO):
    """A stream that says that people read it."""

    def isatty(self) -> bool:
        return True


def test_a_table_in_a_pipe_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table(COLUMNS, [("email", "12"), ("q" * 300, ("3", "red"))], "none")

    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["QUEUE", "READY"], ["email", "12"], ["q" * 300, "3"]]
    assert len({len(line) for line in lines}) == 1


def test_a_table_at_a_terminal_folds_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")

    table(COLUMNS, [("q" * 100, "3")], "none")

    shown = click.unstyle(screen.getvalue())
    assert shown.count("q") == 100
    assert all(len(line) <= 40 for line in shown.splitlines())


def test_a_narrow_terminal_is_told_what_it_does_not_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = (Column("Id"), Column("Prio", spared=2), Column("Queue", spared=1), Column("Task"))
    screen = narrow_screen(monkeypatch)

    table(columns, [("i" * 8, "0", "q" * 8, "app.add")], "none")

    assert click.unstyle(screen.getvalue()).split() == ["Id", "Task", "─" * 17, "i" * 8, "app.add"]
    assert capsys.readouterr().err.startswith("no room for Prio, Queue; ")


def test_what_cannot_be_spared_is_wrapped_by_the_terminal_and_never_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = (Column("Id"), Column("Prio", spared=1), Column("Task"))
    screen = narrow_screen(monkeypatch)

    table(columns, [("i" * 32, "0", "app.add")], "none")

    assert screen.getvalue().split() == ["ID", "PRIO", "TASK", "i" * 32, "0", "app.add"]


def narrow_screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of twenty columns in the place of standard output."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_wide_letters_take_their_place_in_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    table(COLUMNS, [("日本語", "1"), ("email", "2"), ("e\u0301cole", "3")], "none")

    assert capsys.readouterr().out.splitlines() == [
        "QUEUE   READY",
        "日本語      1",
        "email       2",
        "e\u0301cole       3",
    ]


def test_an_empty_table_says_what_that_means_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    table(COLUMNS, [], "no queues yet")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "no queues yet\n"


def test_text_of_a_job_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\r\x9b1m") == "a\\x1b[2Jb\\x07\\x0d\\x9b1m"


def test_markup_in_the_text_of_a_job_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "dumb")

    table(COLUMNS, [("[red]email[/red]", "1")], "none")

    assert "[red]email[/red]" in screen.getvalue()


def test_a_line_of_json_takes_values_that_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime.datetime(2025, 1, 31, tzinfo=datetime.UTC)

    json_line({"text": "a\nb", "at": moment, "odd": complex(1, 2)})

    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"text": "a\nb", "at": "2025-01-31T00:00:00Z", "odd": "(1+2j)"}


def test_moments_are_given_in_utc_and_in_milliseconds() -> None:
    assert stamps(seen_at=1_700_000_000_123, gone_at=None) == {
        "seen_at": "2023-11-14T22:13:20.123Z",
        "seen_at_ms": 1_700_000_000_123,
        "gone_at": None,
        "gone_at_ms": None,
    }


def test_a_moment_beyond_the_calendar_has_no_text() -> None:
    assert iso(10**18) is None


@pytest.mark.parametrize(
    ("moment", "words"), [(None, "-"), (1_000, "9s ago"), (10_000, "0ms ago"), (15_000, "in 5s")]
)
def test_ages_look_backward_and_forward(moment: int | None, words: str) -> None:
    assert ago(moment, 10_000) == words
