import sys, os, random, threading, asyncio
import pytest
from ferryman.clock import ManualClock
from ferryman.store.memory.store import MemoryStore
from ferryman.store.port import *
from ferryman.job import *
from tests.conformance.test_crash import OPERATIONS, Harbour
from tests.conformance.driver import Ferry, check_counts, ALL, W1, W2, new_job, worker_info, LEASE

class Strike(BaseException): pass

def fresh():
    clock = ManualClock()
    store = MemoryStore(clock)
    return Ferry(store, clock, lambda: store)

def strike_at(run, k):
    n = 0
    struck = False
    def local(frame, event, arg):
        nonlocal n, struck
        if event == "line" and not struck:
            n += 1
            if n == k:
                struck = True
                raise Strike
        return local
    def tracer(frame, event, arg):
        f = frame.f_code.co_filename
        if "store/memory/" in f and not f.endswith(("runner.py", "store.py")) and frame.f_code.co_name not in ("commit", "roll_back"):
            return local(frame, "line", None) if False else local
        return None
    sys.settrace(tracer)
    try:
        run()
    finally:
        sys.settrace(None)
    return n

def deep(ferry):
    """drain everything to the end"""
    order = []
    for w in ("w1", "w2", "w3"):
        pass
    ferry.run(ferry.store.pause(["default","new","fair","small"], False))
    ferry.register(WorkerId("last"))
    for _ in range(20):
        while claims := ferry.claim(50, worker=WorkerId("last")):
            order += [c.id for c in claims]
            ferry.succeed(*claims, worker=WorkerId("last"))
        ferry.clock.advance(3600*24)
    return order

@pytest.mark.parametrize("name", OPERATIONS)
def test_strikes(name):
    total = 0
    # ids are random; compare by seq
    k = 1
    ferry = fresh(); harbour = Harbour(ferry)
    op = OPERATIONS[name](harbour)
    before = harbour.look()
    while True:
        try:
            strike_at(lambda: ferry.run(op), k)
        except Strike:
            assert harbour.look() == before, (name, k)
            check_counts(ferry.store)
            k += 1 if k < 400 else 7
            continue
        break
    print(name, k)
    # same end as an undisturbed twin
    twin = fresh(); h2 = Harbour(twin)
    # compare by behaviour
    s1 = deep(ferry); 
    op2 = OPERATIONS[name](h2); twin.run(op2)
    s2 = deep(twin)
    seq1 = [(j.state, j.attempt, j.queue, j.priority) for j in ferry.jobs()]
    seq2 = [(j.state, j.attempt, j.queue, j.priority) for j in twin.jobs()]
    assert seq1 == seq2
    check_counts(ferry.store)

def test_fork_refused():
    ferry = fresh(); ferry.add()
    pid = os.fork()
    if pid == 0:
        from ferryman.errors import StoreUnavailable
        try:
            ferry.add()
        except StoreUnavailable as e:
            assert "sqlite:///" in str(e)
            ferry.store.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    ferry.add()

def test_lines_stay_bounded():
    ferry = fresh(); book = ferry.store._desk._book
    r = random.Random(1)
    for n in range(300):
        ferry.enqueue(*[new_job(ttl=10**9, key=r.choice([None,"a","b"]), delay=r.choice([0,0,1000]), unique=Unique(f"u{n}-{i}", period=1000)) for i in range(20)])
        ferry.clock.advance(0.5)
        claims = ferry.claim(100)
        ferry.succeed(*claims)
        ferry.run(ferry.store.prune(Retention(succeeded=2000, stats=60000), 10_000))
    while (claims := ferry.claim(100)): ferry.succeed(*claims)
    ferry.clock.advance(10_000)
    for _ in range(3): ferry.run(ferry.store.prune(Retention(succeeded=2000, stats=60000), 10_000))
    size = lambda line: len(line._in_order)+len(line._strays)
    print({n: size(getattr(book, n)) for n in ("due","deadlines","succeeded","dead","other","results","ends")}, len(book.cards), len(book.uniques), len(book.keys), len(book.minutes))
    assert len(book.cards) == 0 and not book.uniques and not book.keys
    assert all(size(getattr(book, n)) < 200 for n in ("due","deadlines","succeeded","dead","other","results","ends"))

def test_async_wait_no_leak_and_lost_wakeup():
    ferry = fresh(); store = ferry.store
    async def live():
        r = store.async_runner()
        await r.run(store.lanes())
        t = threading.Thread(target=lambda: ferry.run(store.enqueue([new_job()]))); t.start(); t.join()
        await asyncio.wait_for(r.wait(60), 1)     # changed since last look
        await r.run(store.lanes())
        for _ in range(100):
            await r.wait(0.0001)
        assert not store._desk._sleepers
        w = [asyncio.create_task(r.wait(60)) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        threading.Thread(target=lambda: ferry.run(store.enqueue([new_job()]))).start()
        await asyncio.wait_for(asyncio.gather(*w), 5)
        w = asyncio.create_task(r.wait(60)); await asyncio.sleep(0); w.cancel()
        try: await w
        except asyncio.CancelledError: pass
        assert not store._desk._sleepers
    asyncio.run(live())

def test_blocking_lost_wakeup():
    ferry = fresh(); store = ferry.store
    import time
    ferry.run(store.lanes())
    t = threading.Thread(target=lambda: store.runner().run(store.enqueue([new_job()]))); t.start(); t.join()
    t0 = time.time(); ferry.runner.wait(30); assert time.time()-t0 < 1

def test_drop_oldest_big():
    ferry = fresh()
    ferry.run(ferry.store.declare([QueueSettings(name="default", max_size=100, overflow="drop_oldest")]))
    r = random.Random(3)
    for n in range(200):
        ferry.enqueue(*[new_job(priority=r.choice([0,1]), delay=r.choice([0,5]), max_attempts=3) for _ in range(r.randint(1, 30))])
        for c in ferry.claim(3): ferry.settle(c, r.choice([OutcomeKind.RETRY, OutcomeKind.SUCCEEDED, OutcomeKind.SNOOZED]), delay=r.choice([0, 3]))
        lanes = ferry.run(ferry.store.lanes())
        assert sum(l.counts[s] for l in lanes for s in PENDING) <= 103
        ferry.clock.advance(0.002)
    pend = [j for j in ferry.jobs() if j.state in PENDING]
    check_counts(ferry.store)

def test_fair_plain_switch_and_memory():
    ferry = fresh()
    ferry.run(ferry.store.declare([QueueSettings(name="default", fair=True)]))
    for n in range(5000):
        ferry.add(tenant=f"t{n}"); ferry.finish_next()
    (lane,) = ferry.store._desk._book.queues["default"].lanes.values()
    assert len(lane.tenants) < 200, len(lane.tenants)
    old = ferry.add_many(5, tenant="a")
    ferry.run(ferry.store.declare([QueueSettings(name="default")]))
    new = ferry.add_many(5)
    assert ferry.drain() == old + new

def test_waker_after_close_and_rings():
    import select
    ferry = fresh(); s = ferry.store
    w = s.waker()
    readable = lambda: bool(select.select([w.fileno()], [], [], 0)[0])
    ferry.add(); assert readable(); w.drain(); assert not readable()
    ferry.add(delay=5000); assert readable(); w.drain()
    ferry.add(delay=9000); assert not readable()
    ferry.add(delay=1000); assert readable(); w.drain()
    w.changed(); ferry.run(s.lanes()); assert not w.changed()
    ferry.heartbeat(); assert not readable()
    w.close(); w.close(); ferry.add()
    assert s._desk._bells == ()
