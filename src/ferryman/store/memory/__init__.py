"""The memory store: all verbs over one book of records, for one process.

The runner keeps the lock, the clock and the bells; the other files only read and change the book, and none
of them may wait or do I/O. Start with `book.py`, then read a verb beside the SQLite store's file of the same name.
"""
