"""Backup and restore: one file for every store, which is either whole or refused."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ferryman.config import BlobSettings, Settings
from ferryman.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable, StoreVersionError
from ferryman.io.operation import perform
from ferryman.job import JobId, State, new_id
from ferryman.moving import backup as moving_backup
from ferryman.moving import chest as moving_chest
from ferryman.moving.backup import Restored, Saved, backup, restore
from ferryman.moving.chest import FORMAT, ChestReader
from ferryman.payload import Payloads, is_reference, read_reference
from ferryman.store.port import Store
from ferryman.store.records import ARRIVING, QueueSettings, Retention

from .driver import Ferry, check_counts, new_job
from .stores import STORES, Candidate
from .test_cargo import Alone, Ground, facts, pack_all, tell

NO_BLOBS = BlobSettings()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    yield ground
    ground.close()


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """Where the backup goes."""
    return tmp_path / "jobs.ferry"


def nothing(*_: object) -> None:
    """Watches nothing."""


def save(store: Store, path: Path, blobs: BlobSettings = NO_BLOBS) -> Saved:
    return backup(store, path, blobs, nothing)


def bring_back(store: Store, path: Path, blobs: BlobSettings = NO_BLOBS, *, merge: bool = False) -> Restored:
    return restore(store, path, Settings(blobs=blobs), nothing, merge=merge)


@pytest.mark.parametrize("target", STORES, ids=lambda candidate: f"to-{candidate.name}")
@pytest.mark.parametrize("source", STORES, ids=lambda candidate: f"from-{candidate.name}")
def test_what_was_saved_is_restored(
    ground: Ground, chest: Path, source: Candidate, target: Candidate
) -> None:
    here, direct, there = ground.open(source), ground.open(target), ground.open(target)
    walk = tell(Alone(here, ground.clock), 11)
    here.runner().run(here.rescue([walk.worker]))
    parcels = pack_all(here)
    queues = here.runner().run(here.queues())
    direct.runner().run(direct.declare([queue.settings for queue in queues]))
    direct.runner().run(direct.unpack(parcels))

    saved = save(here, chest)
    restored = bring_back(there, chest)

    assert (saved.jobs, restored.jobs, restored.new) == (len(parcels),) * 3
    assert sum(saved.counts.values()) == sum(restored.counts.values()) == len(parcels)
    assert [facts(parcel) for parcel in pack_all(there)] == [facts(parcel) for parcel in pack_all(direct)]
    assert there.runner().run(there.queues()) == queues
    check_counts(there)


def test_a_store_that_has_jobs_is_not_restored_into_by_mistake(ferry: Ferry, chest: Path) -> None:
    kept, gone = ferry.add_many(2)
    save(ferry.store, chest)
    ferry.delete(gone)
    ferry.finish_next()

    with pytest.raises(ConfigError, match="--merge"):
        bring_back(ferry.store, chest)
    merged = bring_back(ferry.store, chest, merge=True)

    assert (merged.jobs, merged.new) == (2, 1)
    assert ferry.states([kept, gone]) == [State.SUCCEEDED, State.READY]


def test_others_may_go_on_while_a_backup_is_made(ferry: Ferry, chest: Path) -> None:
    ids = ferry.add_many(600)
    late: list[JobId] = []

    def work(*_: object) -> None:
        ferry.finish_next()
        late.append(ferry.add())

    saved = backup(ferry.store, chest, NO_BLOBS, work)

    found = {parcel.job.id for chunk in ChestReader(chest).chunks() for parcel in chunk}
    assert set(ids) <= found <= {*ids, *late}
    assert saved.jobs == len(found)


def test_pauses_and_settings_of_queues_are_restored(ferry: Ferry, ground: Ground, chest: Path) -> None:
    there = ground.open(STORES[0])
    ferry.run(ferry.store.declare([QueueSettings(name="fair", fair=True, weights={"acme": 2.0})]))
    ferry.run(ferry.store.pause(["fair", "held"], True))

    save(ferry.store, chest)
    bring_back(there, chest)

    assert there.runner().run(there.queues()) == ferry.run(ferry.store.queues())


@pytest.mark.parametrize("seed", range(30))
def test_a_file_that_was_damaged_anywhere_is_refused(ground: Ground, chest: Path, seed: int) -> None:
    here, there = ground.open(STORES[0]), ground.open(STORES[0])
    random = Random(seed)
    here.runner().run(here.enqueue([new_job(args=random.randbytes(50)) for _ in range(40)]))
    save(here, chest)
    whole = chest.read_bytes()
    place = random.randrange(len(whole))
    if seed % 2:
        chest.write_bytes(whole[:place])
    else:
        chest.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << random.randrange(8)]) + whole[place + 1 :]
        )

    with pytest.raises((StoreCorrupt, StoreVersionError)):
        bring_back(there, chest)

    assert pack_all(there) == []


def test_a_file_of_a_newer_ferryman_is_refused(ferry: Ferry, chest: Path) -> None:
    save(ferry.store, chest)
    chest.write_bytes(chest.read_bytes().replace(b"backup %d\n" % FORMAT, b"backup %d\n" % (FORMAT + 1), 1))

    with pytest.raises(StoreVersionError, match="install the newer Ferryman"):
        bring_back(ferry.store, chest)


def test_another_file_is_refused(ferry: Ferry, chest: Path) -> None:
    chest.write_text("jobs: none\n")

    with pytest.raises(StoreCorrupt, match="is no backup"):
        bring_back(ferry.store, chest)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        bring_back(ferry.store, chest.with_name("elsewhere"))


def test_a_backup_that_breaks_off_leaves_no_file(ferry: Ferry, chest: Path) -> None:
    ferry.add()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(ferry.store, chest, NO_BLOBS, fail)

    assert not [path for path in chest.parent.iterdir() if "ferry" in path.name]


def test_payloads_outside_the_store_go_into_the_file(ferry: Ferry, ground: Ground, chest: Path) -> None:
    there = ground.open(STORES[0])
    old = BlobSettings(url=f"file://{chest.parent}/old", above=1_024)
    new = BlobSettings(url=f"file://{chest.parent}/new", above=1_024)
    large = bytes(range(256)) * 40
    jobs = perform(
        ferry.runner, Payloads(old, lambda: ferry.store).stow_args([new_job(id=new_id(), args=large)])
    )
    ferry.enqueue(*jobs)

    without = save(ferry.store, chest)
    saved = save(ferry.store, chest, old)
    bring_back(there, chest, new)

    assert (without.left_outside, saved.left_outside) == (1, 0)
    (arrived,) = there.runner().run(there.get([jobs[0].id]))
    assert arrived is not None
    assert is_reference(arrived.args)
    assert perform(there.runner(), Payloads(new, lambda: there).fetch(arrived.args)) == large


# -- the file --------------------------------------------------------------------------------------------


def parts_of(chest: Path) -> list[Path]:
    return list(chest.parent.glob(".*.part"))


def test_a_file_that_cannot_be_read_again_does_not_replace_the_one_before(
    ground: Ground, chest: Path
) -> None:
    store = ground.open(STORES[0])
    random = Random(1)
    store.runner().run(store.enqueue([new_job(args=random.randbytes(200_000)) for _ in range(2)]))
    save(store, chest)
    before = chest.read_bytes()

    def spoil(*_: object) -> None:
        (part,) = parts_of(chest)
        with part.open("r+b") as stream:
            stream.seek(100_000)
            stream.write(b"spoilt")

    with pytest.raises(StoreCorrupt, match="does not give back"):
        backup(store, chest, NO_BLOBS, spoil)

    assert chest.read_bytes() == before
    assert parts_of(chest) == []


@pytest.mark.parametrize(("queues", "size"), [(0, 10), (0, 60_000), (2_000, 10)])
def test_a_backup_to_a_full_disk_says_so_and_leaves_nothing(
    ground: Ground, chest: Path, queues: int, size: int
) -> None:
    """It is found full at the end, by a chunk, or by the header: small things are not written at once."""
    store = ground.open(STORES[0])
    random = Random(size)
    store.runner().run(store.enqueue([new_job(args=random.randbytes(size))]))
    store.runner().run(store.declare([QueueSettings(name=random.randbytes(9).hex()) for _ in range(queues)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            save(store, chest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path for path in chest.parent.iterdir() if "ferry" in path.name] == []


def test_a_job_that_no_backup_could_give_back_is_not_saved(
    ferry: Ferry, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_chest, "_MOST", 10_000)
    ferry.add(args=bytes(10_000))

    with pytest.raises(StoreError, match="can hold no job of"):
        save(ferry.store, chest)

    assert not chest.exists()


def test_what_a_damaged_file_says_of_its_size_is_not_made_room_for(ferry: Ferry, chest: Path) -> None:
    ferry.add()
    save(ferry.store, chest)
    whole = bytearray(chest.read_bytes())
    whole[whole.index(b"\n") + 2] = 0xE0
    chest.write_bytes(whole)
    tracemalloc.start()

    with pytest.raises(StoreCorrupt, match="cut off"):
        ChestReader(chest)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


# -- while workers of the store run what is restored -------------------------------------------------------


def test_a_store_keeps_what_is_restored_until_all_of_it_is(
    ferry: Ferry, ground: Ground, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_backup, "_PAGE", 1)
    here = Ferry(ground.open(STORES[0]), ground.clock, lambda: here.store)
    old, parent = here.add_many(2)
    child = here.add(after=(parent,))
    here.finish_next()
    save(here.store, chest)
    keep_nothing = Retention(succeeded=0, succeeded_count=0, other=0, other_count=0)
    done: list[JobId] = []

    def work(*_: object) -> None:
        done.extend(ferry.drain())
        ferry.clock.advance(1)
        ferry.run(ferry.store.prune(keep_nothing, 100))

    restored = restore(ferry.store, chest, Settings(), work, merge=False)
    kept = {job.id for job in ferry.jobs()}
    work()

    assert restored.new == 3
    assert done == [parent, child]
    assert kept == {old, parent, child}
    assert ferry.jobs() == []


def test_a_restore_that_was_killed_ends_when_it_is_begun_again(ferry: Ferry, chest: Path) -> None:
    (job,) = ferry.add_many(1)
    save(ferry.store, chest)
    ferry.delete(job)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(ferry.store, chest, Settings(), die, merge=False)
    before = ferry.run(ferry.store.kv_get(ARRIVING))
    bring_back(ferry.store, chest, merge=True)

    assert before is not None
    assert ferry.run(ferry.store.kv_get(ARRIVING)) is None


# -- payloads --------------------------------------------------------------------------------------------


def test_payloads_that_are_too_large_for_a_store_are_refused_before_anything_is_stored(
    ferry: Ferry, ground: Ground, chest: Path
) -> None:
    there = ground.open(STORES[0])
    ferry.add()
    ferry.add(args=b"\x01" + bytes(4_000_001))
    save(ferry.store, chest)
    small = Settings(max_payload=4_000_000)
    enough = Settings(max_payload=4_000_001)

    with pytest.raises(ConfigError, match=r"set blobs\.url"):
        restore(there, chest, small, nothing, merge=False)
    before = pack_all(there)
    restored = restore(there, chest, enough, nothing, merge=False)

    assert before == []
    assert restored.new == 2


def test_a_payload_is_restored_under_a_name_that_it_never_had(
    ferry: Ferry, chest: Path, tmp_path: Path
) -> None:
    blobs = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    (job,) = perform(
        ferry.runner, Payloads(blobs, lambda: ferry.store).stow_args([new_job(args=bytes(2_000))])
    )
    ferry.enqueue(job)
    save(ferry.store, chest, blobs)
    ferry.delete(job.id)

    bring_back(ferry.store, chest, blobs, merge=True)

    before, after = read_reference(job.args), read_reference(ferry.job(job.id).args)
    assert before is not None
    assert after is not None
    assert after.name != before.name
