"""Jobs in a PostgreSQL database: for a fleet, and for enqueues inside the user's own transactions.

Only SQL and what it means lives here; connections and the runners are in `ferryman.io`. Start with `sql/0001_tables.sql`
for what is stored, then `store.py`, whose verbs name the file of each operation: a Python file that says what is asked,
and the function in `sql/functions` that answers. `sql/functions/places.sql` says how transactions go side by side.
"""
