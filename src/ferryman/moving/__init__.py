"""Jobs change stores, or go into a file and come back. It knows the port alone, so any store will do.

Nothing here asks people or shows anything: that is the command line's. Start with `mover.py`.
"""
