"""What most programs import: the app, with the worker that lives in the program itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ferryman.app import App
from ferryman.config import WorkerSettings, check_names
from ferryman.values import TEXTS, Kind, taken

if TYPE_CHECKING:
    from ferryman.worker.inprocess import InProcessWorker

__all__ = ["Ferryman"]


class Ferryman(App):
    """Tasks, queue settings and a store.

    ```python
    app = Ferryman()

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    with app.worker():
        print(add.enqueue(1, 2).result(timeout=10))
    ```
    """

    def worker(self, *, queues: Sequence[str] | None = None, **settings: Any) -> InProcessWorker:
        """A worker inside this process, to be used in a ``with`` statement. For production, see
        ``ferryman worker --help``.

        `settings` are fields of `ferryman.config.WorkerSettings`, such as ``concurrency=4``.
        """
        from ferryman.worker.inprocess import InProcessWorker

        check_names(WorkerSettings, settings, "the worker's options")
        served = None if queues is None else taken("queues", queues, _QUEUES)
        return InProcessWorker(self, served, **settings)


_QUEUES = Kind("a list of the names of queues, such as queues=('reports',)", TEXTS.take)
