"""Jobs in one SQLite file: no server, durable, shared by all processes of a machine.

Only SQL and what it means lives here; connections, turns and the runners are in `ferryman.io`. Start with
`schema.py` for what is stored, then `store.py`, whose verbs name the file that holds each operation.
"""
