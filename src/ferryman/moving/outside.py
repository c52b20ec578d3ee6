"""Payloads that lie outside the store: brought along when their job changes stores."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, PayloadError
from ferryman.io.operation import perform
from ferryman.payload import Payloads, is_reference, read_reference
from ferryman.store.cargo import Parcel
from ferryman.store.port import Store

__all__ = ["Outside", "lies_outside"]


def lies_outside(parcel: Parcel) -> bool:
    """Whether its arguments or its result are not in the store itself."""
    return is_reference(parcel.job.args) or is_reference(parcel.result)


class Outside:
    """The place of large payloads, for jobs that arrive in `store` or leave it."""

    def __init__(self, settings: BlobSettings, store: Store) -> None:
        self.known = settings.url is not None
        """Whether there is such a place."""
        self.lost = 0
        """Payloads that were not in their place any more: their jobs keep the reference."""
        self._payloads = Payloads(settings, lambda: store)
        self._runner = store.runner()

    def demand(self, parcels: Sequence[Parcel]) -> None:
        """Raises ConfigError if these need a place that nobody has named."""
        if not self.known and any(map(lies_outside, parcels)):
            raise ConfigError(
                "some jobs have arguments or results outside the store, and blobs.url is not set; set it "
                "(FERRYMAN_BLOBS_URL) as it is set where the jobs are enqueued, and begin again: nothing is lost"
            )

    def bring_in(self, parcel: Parcel) -> Parcel:
        """The same with all payloads in itself."""
        return self._with(parcel, self._fetched(parcel.job.args), self._fetched(parcel.result))

    def put_out(self, parcel: Parcel, like: Parcel | None = None) -> Parcel:
        """The same with its large payloads in their place, under the name of this store. `like` is the job as it was
        before: its payloads' names say what they are."""
        like = like or parcel
        args = self._stowed(parcel, parcel.job.args, like.job.args, "args")
        return self._with(parcel, args, self._stowed(parcel, parcel.result, like.result, "result"))

    def forward(self, parcel: Parcel) -> Parcel:
        """The same with its payloads copied: from the name of the store that it leaves to the name of this one."""
        return self.put_out(self.bring_in(parcel), parcel)

    def _with(self, parcel: Parcel, args: bytes | None, result: bytes | None) -> Parcel:
        job = msgspec.structs.replace(parcel.job, args=args or b"")
        return msgspec.structs.replace(parcel, job=job, result=result)

    def _fetched(self, payload: bytes | None) -> bytes | None:
        if payload is None or not is_reference(payload):
            return payload
        try:
            return perform(self._runner, self._payloads.fetch(payload))
        except PayloadError:
            self.lost += 1
            return payload

    def _stowed(self, parcel: Parcel, payload: bytes | None, before: bytes | None, what: str) -> bytes | None:
        if payload is None or is_reference(payload):
            return payload
        reference = read_reference(before)
        if reference is not None:
            what = reference.name.rpartition("/")[2].partition(".")[2] or what
        return perform(self._runner, self._payloads.stow(parcel.job.id, what, payload))
