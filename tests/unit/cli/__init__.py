"""The command line, on a SQLite file and the real program."""
