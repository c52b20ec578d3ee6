"""The Redis store: one function of Redis for each verb, over keys that a person can read with `redis-cli`.

The functions are in `lua/`, whose `book.lua` says what lies under which key; the Python files only put their arguments
together and decode their answers. Start with `store.py`, where each verb names its file, and read that beside the Lua
file of the same name.
"""
