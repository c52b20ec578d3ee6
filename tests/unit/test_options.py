"""Options of tasks and jobs: what makes no sense is refused with its name, before anything is stored."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from ferryman import Codec, Ferryman, FerrymanError, Filter, JsonFormat, Retry, RetryIn, Snooze, State
from ferryman.errors import BadArguments, ConfigError, InvalidValue, PayloadError, UnknownTask
from ferryman.options import Unique
from ferryman.outbox import Event, Outbox

FIVE = datetime.timedelta(seconds=5)
MORNING = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
ID = "0192f3c4a1b27def8123456789abcdef"


@pytest.fixture
def app() -> Ferryman:
    return Ferryman("memory://")


def add(a: int, b: int = 0) -> int:
    return a + b


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": -1}, "delay must lie between 0 and 3,153,600,000 seconds"),
        ({"delay": math.inf}, "delay must lie"),
        ({"ttl": math.nan}, "ttl must lie"),
        ({"timeout": 1e300}, "timeout must lie"),
        ({"result_ttl": 2**63}, "result_ttl must lie"),
        ({"unique": math.inf}, "unique must lie"),
        ({"unique": Unique(period=-1)}, "unique must lie"),
        ({"priority": 1.0}, "priority must be a whole number from -9 to 9, or one of low.*, not 1.0"),
        ({"priority": 10}, "priority 10 does not lie between -9 and 9"),
        ({"key": "k", "room": 0}, "room must lie between 1 and 2,147,483,647"),
        ({"key": "k", "room": 2**31}, "room must lie"),
        ({"max_memory": -1}, "max_memory must not be negative"),
        ({"max_memory": 2**70}, "max_memory must not be negative, and 2,147,483,647 MiB at most"),
    ],
    ids=str,
)
def test_numbers_that_no_store_could_keep_are_refused(options: dict[str, Any], words: str) -> None:
    app = Ferryman("memory://")

    with pytest.raises(ConfigError, match=words):

        @app.task(**options)
        def work() -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": "k" * 1_001}, "key 'kkkk.* has 1,001 bytes, and 1,000 is the most"),
        ({"unique": "ä" * 501}, "unique 'ää.* has 1,002 bytes"),
        ({"unique": Unique("u" * 1_001)}, "unique 'uu.* has 1,001 bytes"),
        ({"tenant": "t" * 1_001}, "tenant 'tt.* has 1,001 bytes"),
        ({"tags": ["a", "b" * 1_001]}, "tag 'bb.* has 1,001 bytes"),
        ({"name": "n" * 1_001}, "name 'nn.* has 1,001 bytes"),
    ],
    ids=["key", "unique", "Unique", "tenant", "tags", "name"],
)
def test_texts_that_are_too_long_for_the_index_of_some_store_are_refused_by_all(
    options: dict[str, Any], words: str
) -> None:
    app = Ferryman("memory://")

    with pytest.raises(ConfigError, match=words):

        @app.task(**options)
        def work() -> None: ...


@pytest.mark.parametrize("key", ["{who}", lambda who: who], ids=["format", "function"])
def test_so_is_a_key_that_is_made_from_arguments(key: Any) -> None:
    app = Ferryman("memory://")

    @app.task(key=key)
    def greet(who: str) -> None: ...

    greet.enqueue("w" * 1_000)
    with pytest.raises(BadArguments, match=r"key 'ww.* has 1,001 bytes, and 1,000 is the most"):
        greet.enqueue("w" * 1_001)


@pytest.mark.parametrize(("made", "key"), [(None, None), (7, "7"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))])
def test_what_a_function_gives_as_a_key_is_taken_as_text_and_none_as_no_key(
    made: Any, key: str | None
) -> None:
    app = Ferryman("memory://")

    @app.task(key=lambda who: made)
    def greet(who: str) -> None: ...

    assert greet.enqueue("w").record().key == key


@pytest.mark.parametrize("attempts", [0, 2**31])
def test_so_is_a_number_of_attempts(attempts: int) -> None:
    with pytest.raises(ValueError, match="max_attempts must lie between 1 and 2,147,483,647"):
        Retry(max_attempts=attempts)


def test_the_largest_numbers_of_all_are_kept() -> None:
    app = Ferryman("memory://")

    @app.task(retry=Retry(max_attempts=2**31 - 1), key="k", room=2**31 - 1)
    def work() -> None: ...

    job = work.options(delay=3_153_600_000, ttl=3_153_600_000).enqueue().record()
    assert job.max_attempts == 2**31 - 1
    assert job.run_at > job.enqueued_at


@pytest.mark.parametrize("weight", [0, -1.0, 1e-310, 1e7, math.inf, math.nan])
def test_so_is_a_weight_whose_share_cannot_be_reckoned_with(weight: float) -> None:
    app = Ferryman("memory://")

    with pytest.raises(
        ConfigError, match=r"'imports': the weight of 'acme' must lie between 0\.000001 and 1,000,000"
    ):
        app.queue("imports", fair=True, weights={"bolt": 1, "acme": weight})


def test_a_key_that_is_neither_a_text_nor_a_function_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"key must be a text or a function.*, not 5"):
        Ferryman("memory://").task(key=5)(lambda: None)  # type: ignore[call-overload]


def test_tenants_and_tags_that_are_numbers_are_taken_as_texts() -> None:
    app = Ferryman("memory://")

    @app.task(tenant=7, tags=[8])  # type: ignore[call-overload, untyped-decorator]
    def work() -> None: ...

    (job,) = app.store.runner().run(app.store.get([work.enqueue().id]))

    assert job is not None
    assert (job.tenant, job.tags) == ("7", ("8",))


def test_a_text_that_is_a_member_of_an_enum_is_its_value() -> None:
    class Word(str, enum.Enum):  # noqa: UP042 - whose str() names the member.
        MAIL = "mail"

    app = Ferryman("memory://")

    @app.task(queue=Word.MAIL, key=Word.MAIL, tenant=Word.MAIL, tags=[Word.MAIL])
    def work() -> None: ...

    (job,) = app.store.runner().run(app.store.get([work.enqueue().id]))
    tagged = app.store.runner().run(app.store.find(Filter(tags=(Word.MAIL,)), 9))

    assert job is not None
    assert (job.queue, job.key, job.tenant, job.tags) == ("mail", "mail", "mail", ("mail",))
    assert [each.id for each in tagged] == [job.id]


# -- what is of another kind than is wanted --------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": 5}, "queue must be a text, not 5"),
        ({"queue": ""}, "a queue needs a name of 1 to 200 characters"),
        ({"priority": True}, "priority must be a whole number from -9 to 9, or one of low.*, not True"),
        ({"priority": "highest"}, "priority must be .*one of low, normal, high, urgent, not 'highest'"),
        ({"delay": "5"}, "delay must be seconds, as a number or a timedelta, not '5'"),
        ({"delay": None}, "delay must be seconds, as a number or a timedelta, not None"),
        ({"delay": True}, "delay must be seconds, as a number or a timedelta, not True"),
        ({"ttl": "1h"}, "ttl must be seconds, as a number or a timedelta, not '1h'"),
        ({"timeout": [1]}, "timeout must be seconds, as a number or a timedelta, not \\[1\\]"),
        ({"result_ttl": {}}, "result_ttl must be seconds, as a number or a timedelta"),
        ({"at": "2030"}, "at must be an aware datetime, such as datetime.now.*, not '2030'"),
        ({"at": datetime.datetime(2030, 1, 1)}, "at must be an aware datetime"),  # noqa: DTZ001
        ({"deadline": 3}, "deadline must be an aware datetime, such as .*, not 3"),
        ({"retry": 3}, "retry must be a Retry, such as Retry\\(max_attempts=3\\), not 3"),
        ({"max_memory": "512MB"}, "max_memory must be a whole number of MiB, such as 512, not '512MB'"),
        ({"key": "{"}, "key must be a text or a function, .* its braces in pairs .*, not '{'"),
        ({"key": "k", "room": "x"}, "room must be a whole number, not 'x'"),
        ({"key": "k", "room": 1.5}, "room must be a whole number, not 1.5"),
        ({"key": "k", "ordered": "yes"}, "ordered must be True or False, not 'yes'"),
        ({"unique": [1]}, "unique must be True, seconds, a timedelta, a key .*, not \\[1\\]"),
        ({"unique": ""}, "unique must be .* a key \\(not an empty one\\)"),
        ({"after": 5}, "after must be a list of job handles or their ids, such as after=\\[first\\], not 5"),
        ({"after": ID}, "after must be a list of job handles or their ids"),
        ({"after": ["abc"]}, "after must be a list of job handles or their ids, .*, not \\['abc'\\]"),
        ({"on_parent_failure": "contine"}, "on_parent_failure must be one of cancel, continue, hold, not"),
        ({"tags": "urgent"}, "tags must be a list of texts, such as tags=\\('urgent',\\), not 'urgent'"),
        ({"tags": 5}, "tags must be a list of texts, .*, not 5"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused_with_what_is_wanted(
    app: Ferryman, options: dict[str, Any], words: str
) -> None:
    task = app.task(add)

    with pytest.raises(ConfigError, match=f"the options of .*add: {words}"):
        task.options(**options)
    with pytest.raises(ConfigError, match=f"the options of other: {words}"):
        app.task(name="other", **options)(add)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": 1, "at": MORNING}, "give delay or at, not both"),
        ({"ttl": 1, "deadline": MORNING}, "give ttl or deadline, not both"),
        (
            {"delay": 60, "ttl": 30},
            "ttl is over after 30 s, before the delay of 60 s: the job could only expire",
        ),
        ({"at": MORNING, "deadline": MORNING - FIVE}, "deadline lies before at"),
        ({"room": 3}, "room needs a key"),
        ({"ordered": True}, "ordered needs a key"),
    ],
    ids=str,
)
def test_options_that_contradict_one_another_are_refused(
    app: Ferryman, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        app.task(**options)(add)


def test_the_nearer_of_two_ways_to_say_when_takes_the_place_of_the_others(app: Ferryman) -> None:
    late = app.task(name="late", delay=60, ttl=3_600)(add)
    dated = app.task(name="dated", at=MORNING, deadline=MORNING)(add)

    (at, deadline), (delay, ttl) = (
        (late.options(at=MORNING).settings, late.options(deadline=MORNING).settings),
        (dated.options(delay=5).settings, dated.options(ttl=5).settings),
    )

    assert (at.delay, at.at, deadline.ttl, deadline.deadline) == (0, MORNING, None, MORNING)
    assert (delay.delay, delay.at, ttl.ttl, ttl.deadline) == (5, None, 5, None)
    assert dated.options(delay=0, at=MORNING).settings.at == MORNING


def test_a_job_without_the_key_of_its_task_needs_no_room(app: Ferryman) -> None:
    task = app.task(key="k", room=3)(add)

    assert task.options(key=None).enqueue(1).record().key is None


def test_durations_may_be_timedeltas_and_numbers_of_other_libraries(app: Ferryman) -> None:
    task = app.task(timeout=FIVE)(add)

    options = task.options(delay=FIVE, ttl=datetime.timedelta(hours=1), result_ttl=FIVE).settings
    job = task.options(delay=FIVE).enqueue(1).record()

    assert (options.delay, options.ttl, options.result_ttl, options.timeout) == (5.0, 3_600.0, 5.0, 5.0)
    assert job.run_at - job.enqueued_at == 5_000
    for number in (Decimal("0.25"), Fraction(1, 4)):
        assert task.options(delay=number).settings.delay == 0.25  # type: ignore[arg-type]


def test_so_may_the_period_of_a_unique_key(app: Ferryman) -> None:
    task = app.task(add)

    said = [task.options(unique=way).new_job((1,), {}).unique for way in (5, FIVE, Unique(period=FIVE))]

    assert [unique and unique.period for unique in said] == [5_000] * 3


def test_parents_may_be_named_by_their_ids(app: Ferryman) -> None:
    task = app.task(add)
    first, second = task.enqueue(1), task.enqueue(2)

    child = task.options(after=[first, second.id.upper(), uuid.UUID(first.id)]).new_job((3,), {})  # type: ignore[list-item]

    assert child.after == (first.id, second.id, first.id)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dealy": 5}, "there is no option 'dealy' here; did you mean 'delay'?"),
        ({"countdown": 5}, "there is no option 'countdown' here; what is meant is delay"),
        ({"max_retries": 5}, "what is meant is retry=Retry\\(max_attempts=…\\)"),
        ({"at_most_once": True}, "what is meant is @app.task\\(at_most_once=True\\)"),
    ],
    ids=str,
)
def test_an_option_that_does_not_exist_is_refused_with_the_one_that_is_meant(
    app: Ferryman, options: dict[str, Any], words: str
) -> None:
    task = app.task(add)

    with pytest.raises(ConfigError, match=words):
        task.options(**options)
    with pytest.raises(ConfigError, match="there is no option 'nmae' here; did you mean 'name'"):
        app.task(nmae="x")(lambda: None)  # type: ignore[call-overload]


def _a_task(app: Ferryman) -> Any:
    return app.task(name="t.add")(add)


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (lambda app: app.enqueue(5), UnknownTask, "enqueue takes the name of a task, such as .*, not 5"),
        (lambda app: app.enqueue(""), UnknownTask, "enqueue takes the name of a task"),
        (lambda app: app.enqueue(_a_task(app), a=1), UnknownTask, "for t.add itself, call its own enqueue"),
        (lambda app: app.enqueue_many([_a_task(app)]), BadArguments, "takes calls, such as task.call.*<task"),
        (lambda app: app.enqueue_many([1]), BadArguments, "takes calls, such as task.call"),
        (lambda app: _a_task(app).enqueue_many([5]), BadArguments, "t.add.* cannot be called like this"),
        (lambda app: app.task(5), ConfigError, "a task is made of a function, not of 5"),
        (lambda app: app.task(name="other")(_a_task(app)), ConfigError, "t.add is a task already"),
        (lambda app: app.task("t.add"), ConfigError, "@app.task\\(name='t.add'\\)"),
        (lambda app: app.task(name=5)(add), ConfigError, "name must be a text, such as .*, not 5"),
        (lambda app: app.task(name="")(add), ConfigError, "name must be a text"),
        (lambda app: app.task(using=5)(add), ConfigError, "what is meant is task.options"),
        (lambda app: app.queue(5), ConfigError, "the name of a queue must be a text, not 5"),
        (lambda app: app.queue(""), ConfigError, "a queue needs a name of 1 to 200 characters"),
        (lambda app: app.queue("q", max_size="5"), ConfigError, "'q': max_size must be a whole number, not '5'"),
        (lambda app: app.queue("q", max_size=2**63), ConfigError, "'q': max_size must be at least 1, and 1,000,"),
        (lambda app: app.queue("q", fair="no"), ConfigError, "'q': fair must be True or False, not 'no'"),
        (lambda app: app.queue("q", weights={"a": 2}), ConfigError, "say fair=True, too"),
        (lambda app: app.queue("q", fair=True, weights=["a"]), ConfigError, "numbers by tenant, such as"),
        (lambda app: app.queue("q", fair=True, weights={"a": "2"}), ConfigError, "numbers by tenant"),
        (lambda app: app.cancel("x"), InvalidValue, "said by a Filter, such as .*, not by 'x'"),
        (lambda app: app.replay(ID), InvalidValue, "for a single one there is app.job"),
        (lambda app: app.worker(queues="mail"), ConfigError, "queues must be a list of the names of queues"),
        (lambda app: app.worker(concurency=3), ConfigError, "no 'concurency'; did you mean 'concurrency'?"),
        (lambda app: app.once("k", add, ttl="1d"), ConfigError, "ttl must be seconds, as a number"),
        (lambda app: app.window("w", seconds="1d"), ConfigError, "seconds must be seconds, as a number"),
        (lambda app: Ferryman("memory://", codec=3), ConfigError, "codec must be a Codec, such as .*, not 3"),  # type: ignore[arg-type]
        (lambda app: Ferryman("memory://", codec=JsonFormat()), ConfigError, "Codec\\(JsonFormat\\(\\)\\)"),  # type: ignore[arg-type]
        (lambda app: Ferryman(settings={}), ConfigError, "settings must be a Settings, not {}"),  # type: ignore[arg-type]
        (lambda app: Ferryman(5), ConfigError, "Expected `str`, got `int`"),  # type: ignore[arg-type]
        (lambda app: _a_task(app).enqueue(1).result("5"), ConfigError, "timeout must be seconds, .*, not '5'"),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense_says_what_would(
    app: Ferryman, wrong: Callable[[Ferryman], object], kind: type[FerrymanError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        wrong(app)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Retry(max_attempts=1.5), "max_attempts must be a whole number, not 1.5"),  # type: ignore[arg-type]
        (lambda: Retry(max_attempts=0), "max_attempts must lie between 1 and 2,147,483,647, not 0"),
        (lambda: Retry(backoff="doubling"), "backoff must be one of exponential, linear.*, not 'doubling'"),  # type: ignore[arg-type]
        (lambda: Retry(base="1"), "base must be seconds, as a number"),  # type: ignore[arg-type]
        (lambda: Retry(base=FIVE), "base must be seconds, .* its total_seconds()"),  # type: ignore[arg-type]
        (lambda: Retry(cap=math.nan), "base and cap must not be negative"),
        (lambda: Retry(jitter=None), "jitter must be a number, not None"),  # type: ignore[arg-type]
        (lambda: Retry(only_on="ValueError"), "only_on must be types of exceptions, such as"),  # type: ignore[arg-type]
        (lambda: Retry(give_up_on=(int,)), "give_up_on must be types of exceptions, such as"),  # type: ignore[arg-type]
        (lambda: Retry(judge="fatal"), "judge must be a function of the exception, not 'fatal'"),  # type: ignore[arg-type]
        (lambda: Unique(until="foo"), "until of Unique must be one of started, finished, not 'foo'"),  # type: ignore[arg-type]
        (lambda: Unique(period="1d"), "the period of Unique must be seconds"),  # type: ignore[arg-type]
        (lambda: Unique(""), "the key of Unique must not be empty"),
        (lambda: Snooze("x"), "the delay of Snooze must be seconds, .*, not 'x'"),  # type: ignore[arg-type]
        (lambda: RetryIn(None), "the delay of RetryIn must be seconds, .*, not None"),  # type: ignore[arg-type]
        (lambda: Filter(queues="reports"), "queues must be a tuple of texts, such as \\('reports',\\), not 'r"),  # type: ignore[arg-type]
        (lambda: Filter(queues=None), "queues must be a tuple of texts"),  # type: ignore[arg-type]
        (lambda: Filter(tags=""), "tags must be a tuple of texts"),  # type: ignore[arg-type]
        (lambda: Filter(tasks=(5,)), "tasks must be a tuple of texts"),  # type: ignore[arg-type]
        (lambda: Filter(causes="x"), "causes must be a tuple of texts"),  # type: ignore[arg-type]
        (lambda: Filter(states=("dead",)), "states must be a tuple of states, such as \\(State.DEAD,\\), not"),  # type: ignore[arg-type]
        (lambda: Filter(states=State.WAITING), "states must be a tuple of states"),  # type: ignore[arg-type]
        (lambda: Filter(states=(6,)), "states must be a tuple of states"),  # type: ignore[arg-type]
        (lambda: Filter(ids=("abc",)), "ids must be a tuple of the ids of jobs"),  # type: ignore[arg-type]
        (lambda: Filter(since=MORNING), "since must be milliseconds since the epoch"),  # type: ignore[arg-type]
        (lambda: Filter(until=2**63), "until must be milliseconds since the epoch"),
        (lambda: Filter(queues=("a\0b",)), "queues must be a tuple of texts"),
        (lambda: Filter(queues=("\ud800",)), "queues must be a tuple of texts"),
    ],
)  # fmt: skip
def test_a_record_is_not_made_of_what_it_cannot_keep(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidValue, match=words) as refused:
        wrong()

    assert isinstance(refused.value, ValueError)


def test_what_is_as_clear_in_another_type_is_taken() -> None:
    made = Retry(only_on=ConnectionError, give_up_on=[KeyError, TypeError])  # type: ignore[arg-type]
    which = Filter(queues=["a"], ids=[ID.upper()], states={State.DEAD})  # type: ignore[arg-type]

    assert (made.only_on, made.give_up_on) == ((ConnectionError,), (KeyError, TypeError))
    assert which == Filter(queues=("a",), ids=(ID,), states=(State.DEAD,))  # type: ignore[arg-type]
    assert (Snooze(FIVE).delay, RetryIn(FIVE).delay, Unique(7).key) == (5.0, 5.0, "7")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
def test_texts_that_some_store_could_not_keep_are_refused_before_any_is_asked(
    app: Ferryman, text: str
) -> None:
    task = app.task(add)
    keyed = app.task(name="keyed", key="{a}")(lambda a: None)

    names: dict[str, Any] = {"queue": text, "key": text, "unique": text, "tenant": text, "tags": [text]}
    for name, value in names.items():
        with pytest.raises(ConfigError, match=r"NUL character|lone surrogate"):
            task.options(**{name: value})
    for call in (lambda: app.queue(text), lambda: app.enqueue(text), lambda: app.task(name=text)(add)):
        with pytest.raises(ConfigError, match=r"NUL character|lone surrogate"):
            call()
    if "\0" in text:
        # Half a character cannot be an argument at all.
        with pytest.raises(BadArguments, match="NUL character"):
            keyed.enqueue(text)


def test_a_key_that_its_arguments_do_not_fit_is_told(app: Ferryman) -> None:
    task = app.task(key="{who:d}")(lambda who: None)

    with pytest.raises(BadArguments, match=r"the key of .* cannot be made from its arguments"):
        task.enqueue("x")


def test_an_event_that_cannot_be_written_is_told(app: Ferryman) -> None:
    class Nowhere:
        def publish(self, event: Event) -> None: ...

    with pytest.raises(PayloadError, match="the event cannot be written as JSON"):
        Outbox(app, Nowhere()).publish("t", object())


def test_a_codec_of_its_own_is_taken() -> None:
    assert Ferryman("memory://", codec=Codec(JsonFormat())).task(add).enqueue(1).status() is State.READY
