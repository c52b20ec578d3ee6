"""The process of an executor: ``python -m ferryman.worker.child TARGET --socket-fd N --slots-fd M --places K``.

A supervisor starts it and hands it one end of a socket pair and the slot table.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import traceback

import msgspec

from ferryman.errors import AppNotFound
from ferryman.worker.executor import Executor
from ferryman.worker.frames import URL_VARIABLE, Kind, write_frame
from ferryman.worker.slots import SlotTable
from ferryman.worker.target import load_app

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run an executor until it is drained (0); 1 if the supervisor is gone, 2 if the app cannot be loaded."""
    target, *rest = arguments
    options = dict(zip(rest[::2], map(int, rest[1::2]), strict=True))
    _behave_as_a_child()
    sock = _inherited_socket(options["--socket-fd"])
    table = SlotTable(options["--slots-fd"], options["--places"])
    os.set_inheritable(options["--slots-fd"], False)
    # What the user's modules may look at, as they would find it when imported by `python -m`.
    sys.argv[1:] = []
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        app = load_app(target)
        if (url := os.environ.pop(URL_VARIABLE, None)) is not None:
            # The command line has the last word; the app has not opened its store yet.
            app.settings = msgspec.structs.replace(app.settings, url=url)
        executor = Executor(app, sock, table, f"the app {target}")
    except Exception as error:
        write_frame(sock, Kind.BROKEN, _story(target, error))
        return 2
    _log_to_stderr()
    # What was imported stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    if not executor.run():
        # Others will take over what runs here. To run on would do it twice.
        os._exit(1)
    return 0


def _behave_as_a_child() -> None:
    faulthandler.enable()
    # Python's 5 ms would let each task that only computes delay every answer, and every other job here, by as
    # much each time that a thread wants the interpreter. This costs no throughput that could be measured.
    sys.setswitchinterval(0.001)
    # ^C and a terminal's end reach the whole process group; it is the supervisor that drains its executors.
    # Handlers that do nothing, not SIG_IGN, which programs started by tasks would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_restore_signals)
    if sys.platform == "linux":
        # No orphan runs on when the supervisor is killed. This is told by the death of the thread that started
        # the process.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _restore_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _inherited_socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sock.setblocking(True)
    # A fork made by a task must not keep the socket open, or the supervisor would not see this process die.
    os.register_at_fork(after_in_child=sock.close)
    return sock


def _log_to_stderr() -> None:
    """After the app was loaded, so that its own settings of logging have precedence."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO,
            stream=sys.stderr,
            format="%(asctime)s %(levelname)s %(name)s [%(process)d %(threadName)s] %(message)s",
        )


def _story(target: str, error: Exception) -> str:
    """Everything that helps to mend an app that cannot be loaded."""
    if not isinstance(error, AppNotFound):
        return f"the app {target} cannot be run:\n{''.join(traceback.format_exception(error))}"
    if error.__cause__ is None:
        return str(error)
    return f"{error}\n{''.join(traceback.format_exception(error.__cause__))}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
