"""Wakers: a sleeping worker learns that there may be work, and what a store says it can do is so."""

from __future__ import annotations

import select
import threading
from pathlib import Path
from urllib.parse import urlsplit

from ferryman.store.port import Waker
from ferryman.store.records import Order

from .driver import LEASE, W2, W3, Ferry, new_job, worker_info
from .stores import Candidate


def _hears(waker: Waker) -> bool:
    """Whether a worker that sleeps by this bell looks at the store before long."""
    for _ in range(int(30 / waker.poll) + 1):
        readable, _, _ = select.select([waker.fileno()], [], [], waker.poll)
        if readable or waker.changed():
            return True
    return False


def _falls_silent(waker: Waker) -> bool:
    """Whether it is silent when it was drained. A ring may have been under way when its news was heard otherwise."""
    for _ in range(20):
        waker.drain()
        waker.changed()
        if not select.select([waker.fileno()], [], [], 0.05)[0] and not waker.changed():
            return True
    return False


def _sleeper(ferry: Ferry) -> Waker:
    """The bell of a worker of its own that has nothing to do."""
    waker = ferry.store.waker()
    ferry.run(ferry.store.register(worker_info(W2, bell=waker.address), LEASE))
    waker.drain()
    waker.changed()
    return waker


def test_a_worker_that_sleeps_hears_of_a_new_job(ferry: Ferry) -> None:
    waker = _sleeper(ferry)

    ferry.add()

    assert _hears(waker)
    waker.close()


def test_a_worker_hears_of_a_job_enqueued_while_it_sleeps(ferry: Ferry) -> None:
    waker = _sleeper(ferry)
    producer = threading.Thread(target=ferry.run, args=(ferry.store.enqueue([new_job()]),))

    producer.start()
    heard = _hears(waker)
    producer.join()

    assert heard
    waker.close()


def test_a_worker_hears_of_an_order(ferry: Ferry) -> None:
    waker = _sleeper(ferry)

    ferry.run(ferry.store.order([W2], Order("drain")))

    assert _hears(waker)
    waker.close()


def test_a_bell_that_was_drained_is_silent_until_it_is_rung_again(ferry: Ferry) -> None:
    waker = _sleeper(ferry)
    ferry.add()
    assert _hears(waker)

    silent = _falls_silent(waker)
    ferry.add()

    assert silent
    assert _hears(waker)
    waker.close()


def test_bells_of_two_workers_ring_apart(ferry: Ferry) -> None:
    one, two = ferry.store.waker(), ferry.store.waker()
    for worker, waker in ((W2, one), (W3, two)):
        ferry.run(ferry.store.register(worker_info(worker, bell=waker.address), LEASE))

    ferry.add()

    assert _hears(one)
    assert _hears(two)
    one.close()
    two.close()


def test_a_bell_that_is_gone_does_not_keep_jobs_from_being_enqueued(ferry: Ferry) -> None:
    waker = _sleeper(ferry)
    waker.close()

    job = ferry.add()

    assert ferry.finish_next() == job


def test_another_store_of_the_same_place_rings_too(shared_ferry: Ferry) -> None:
    waker = _sleeper(shared_ferry)
    other = shared_ferry.reopen()

    other.runner().run(other.enqueue([new_job()]))

    assert _hears(waker)
    other.close()
    waker.close()


def test_a_store_says_what_it_is(ferry: Ferry, candidate: Candidate, tmp_path: Path) -> None:
    capabilities = ferry.store.capabilities

    assert capabilities.name.lower() == candidate.name
    assert capabilities.shared == candidate.shared
    assert urlsplit(ferry.store.url).scheme == urlsplit(candidate.url(tmp_path)).scheme
