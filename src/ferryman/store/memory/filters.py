"""From a `Filter` to cards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ferryman.job import State
from ferryman.store.memory.book import Book, Card
from ferryman.store.records import Filter

__all__ = ["matching"]


def matching(
    book: Book,
    which: Filter,
    among: Collection[State],
    *,
    limit: int,
    newest_first: bool = False,
    test: Callable[[Card], bool] | None = None,
) -> list[Card]:
    """Up to `limit` cards that match and are in one of the states `among`, by arrival. `test` is a further
    condition."""
    states = {state for state in among if not which.states or state in which.states}
    if which.causes:
        states &= {State.DEAD}
    if which.ids:
        chosen = [book.cards[id_] for id_ in dict.fromkeys(which.ids) if id_ in book.cards]
        chosen.sort(key=lambda card: card.seq, reverse=newest_first)
        return _pick(chosen, which, states, limit, len(chosen), test)
    # The counts of the lanes say how many there can be: no need to look further than the last of them.
    most = sum(
        lane.counts[state]
        for name, queue in book.queues.items()
        if not which.queues or name in which.queues
        for lane in queue.lanes.values()
        for state in states
    )
    cards = reversed(book.cards.values()) if newest_first else book.cards.values()
    return _pick(cards, which, states, limit, most, test)


def _pick(
    cards: Iterable[Card],
    which: Filter,
    states: Collection[State],
    limit: int,
    most: int,
    test: Callable[[Card], bool] | None,
) -> list[Card]:
    """`most` is how many cards there are at most of these states and queues."""
    picked: list[Card] = []
    if not most or limit <= 0:
        return picked
    in_states = [state in states for state in State]
    for card in cards:
        if not in_states[card.state] or (which.queues and card.new.queue not in which.queues):
            continue
        most -= 1
        if _fits(card, which) and (test is None or test(card)):
            picked.append(card)
        if not most or len(picked) == limit:
            break
    return picked


def _fits(card: Card, which: Filter) -> bool:
    new = card.new
    return not (
        (which.tasks and new.task not in which.tasks)
        or (which.tags and not any(tag in which.tags for tag in new.tags))
        or (which.causes and card.reason not in which.causes)
        or (which.since is not None and card.enqueued_at < which.since)
        or (which.until is not None and card.enqueued_at >= which.until)
    )
