"""What a fleet must survive: servers, networks and hosts that fail, with real servers, real workers and real kills.

`site.py` has the ground: a server of the test's own, a line to it that can be cut, and the harbour at its end.
"""
