"""Programs of ours that run in a process of their own."""

import sys

# Python looks for modules in the current folder first, where a file may have the name of any.
_RUN = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path);"
    " runpy.run_module({!r}, run_name='__main__', alter_sys=True)"
)


def child_command(module: str) -> list[str]:
    """Return the command that runs `module` with this Python, wherever the current folder is."""
    return [sys.executable, "-c", _RUN.format(module)]
