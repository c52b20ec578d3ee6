"""Users' own connections, on which a store may be a guest: it takes part in their transactions.

What lives here: `kinds.py` tells which library a connection comes from; `sqlite.py` and `postgres.py` perform a
store's operations on it, inside its transaction; `sqlalchemy.py` and `django.py` find the connection beneath what these
libraries hand out. Nothing here begins a transaction that the user did not, save where the driver would have done so
at the user's next statement, and nothing ends one. No library is imported but the one whose object was given.

Accepted are: connections of sqlite3, aiosqlite, psycopg 3 and asyncpg, of both colours where there are two;
connections and sessions of SQLAlchemy 2, scoped ones too, with these drivers or psycopg2; and Django's
``connections["alias"]`` with its SQLite and PostgreSQL backends.
"""
