"""One behavioural suite for every store, held to the contracts of `ferryman.store.port`.

Here live tests that speak to a store through its verbs alone; nothing that looks inside one store may.
Start at `stores.py` (which stores are tested) and `driver.py` (the words that the tests are written in).
"""
