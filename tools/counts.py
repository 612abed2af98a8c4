"""A count on a command line."""

import argparse


def positive(text: str) -> int:
    """The whole number, 1 or more, that `text` says. Raises argparse's error for any other."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number, 1 or more")
    return int(text)
