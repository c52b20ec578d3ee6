"""``python -m ferryman``: the command line, where the script is not on the path."""

from ferryman.cli import main

if __name__ == "__main__":
    main()
