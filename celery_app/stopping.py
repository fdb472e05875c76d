"""Tells all processes of a worker that it is to stop, through a byte of memory that they share across the fork."""

import mmap

_flag = mmap.mmap(-1, 1)


def announce() -> None:
    """Called in the worker's main process, by the signal that stops it."""
    _flag[0] = 1


def announced() -> bool:
    return _flag[0] == 1
