"""Jobs that are stored inside a user's own transaction, with each library that users hold their connections in."""
