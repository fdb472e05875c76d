"""Turns into a command that the kernel signals when the process that started it ends (Linux; run by its path)."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arguments: parent's pid, signal number, user id or "", group id or "", then the command with its absolute path.

    A program of its own instead of `preexec_fn`: Python code between fork and exec is unsafe in a process with threads.
    Needs nothing but what is imported above, because the user it turns into may not be able to read Python's library.
    """
    parent, orphan_signal, user, group, *command = sys.argv[1:]
    if user:
        os.setgroups([])
        os.setgid(int(group))
        os.setuid(int(user))
    # After setuid, which clears the request; kept over exec.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(orphan_signal))
    if os.getppid() != int(parent):  # it ended before the request was in place
        sys.exit(1)
    # Python ignores the first two, and a shell the others in what it starts in the background: a child that inherited
    # that could be neither stopped nor, when it is orphaned, ended.
    for inherited in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(inherited, signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} does not start: {error.strerror}")


if __name__ == "__main__":
    main()
