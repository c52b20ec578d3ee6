"""``ferryman bench``: measures the product on this very machine, beside the floors of its stores.

Each module here measures one thing through the public face, real workers and real syncs included; `floors` holds
the same work done with nothing but a store's driver. Start at `command`.
"""
