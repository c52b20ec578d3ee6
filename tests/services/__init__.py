"""Real servers for the tests: each on a free port of the loopback, with a folder of its own that goes with it.

    with redis_server(maxmemory="50mb", maxmemory_policy="noeviction") as server:
        app = Ferryman(server.url)
        server.kill()       # all its processes at once, as by a loss of power
        server.start()      # on the same port, with what it has on disk

`redis_server`, `postgres_server` and `pgbouncer` are in the modules of these names. `shared` has the two servers that
a whole run of tests shares; ``scripts/services`` starts these, and installs the programs where it may.
"""
