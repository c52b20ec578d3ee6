"""Payloads that lie outside the store: brought along when their job changes stores."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.blob.open import open_blobs
from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, PayloadError
from ferryman.io.operation import perform
from ferryman.job import JobId, new_id
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
        self._blobs = None if settings.url is None else open_blobs(settings.url)
        self._runner = store.runner()

    def demand(self, parcels: Sequence[Parcel]) -> None:
        """Raises ConfigError if these need a place that nobody has named."""
        if not self.known and any(map(lies_outside, parcels)):
            raise ConfigError(
                "some jobs have arguments or results outside the store, and blobs.url is not set; set it "
                "(FERRYMAN_BLOBS_URL) as it is set where the jobs are enqueued, and begin again: nothing is lost"
            )

    def bring_in(self, parcel: Parcel) -> Parcel:
        """The same with all payloads in itself. Raises PayloadError if one is there and cannot be had."""
        id_ = parcel.job.id
        return _with(parcel, self._fetched(id_, parcel.job.args), self._fetched(id_, parcel.result))

    def put_out(self, parcel: Parcel) -> Parcel:
        """The same with its large payloads in their place, under the name of this store."""
        id_ = parcel.job.id
        args = self._stowed(id_, "args", parcel.job.args)
        return _with(parcel, args, self._stowed(id_, "result", parcel.result))

    def forward(self, parcel: Parcel) -> Parcel:
        """The same with its payloads copied: from the name of the store that it leaves to the name of this one."""
        return self.put_out(self.bring_in(parcel))

    def _fetched(self, job: JobId, payload: bytes | None) -> bytes | None:
        if payload is None or not is_reference(payload):
            return payload
        try:
            return perform(self._runner, self._payloads.fetch(payload))
        except PayloadError as error:
            # The job would be forgotten where it was, and then its payload, too.
            if not self._is_gone(payload):
                raise PayloadError(
                    f"job {job} cannot be brought along: {error}. Nothing is lost: mend that, or delete the job, and "
                    "begin again"
                ) from error
            self.lost += 1
            return payload

    def _is_gone(self, payload: bytes) -> bool:
        try:
            reference = read_reference(payload)
        except PayloadError:
            return True  # Nobody can tell what it names.
        return (
            reference is not None and self._blobs is not None and self._blobs.get(reference.name, 0) is None
        )

    def _stowed(self, job: JobId, what: str, payload: bytes | None) -> bytes | None:
        if payload is None or is_reference(payload):
            return payload
        # A name that nobody has used: a sweeper may be about to delete what the job had here before.
        return perform(self._runner, self._payloads.stow(job, f"{what}-{new_id()}", payload))


def _with(parcel: Parcel, args: bytes | None, result: bytes | None) -> Parcel:
    job = msgspec.structs.replace(parcel.job, args=args or b"")
    return msgspec.structs.replace(parcel, job=job, result=result)
