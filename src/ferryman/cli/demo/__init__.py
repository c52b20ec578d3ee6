"""``ferryman demo``: real work through a durable queue, with a crash on the way, and an account of it.

Nothing here is known to the rest of Ferryman or gets special treatment by it: the demo enqueues, starts a worker
and asks the store as any program would. Start at `command`; `catalogue` is the app that the worker runs.
"""
