"""How a tool ends: with an exit code, and where something is wrong with one line that says what."""

import sys
from collections.abc import Callable
from typing import NoReturn

from haversack.devices.errors import HaversackError

USAGE_EXIT_CODE = 2


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with what `main` returns; an error of the model, its files or the machine
    is a line on stderr and exit code 2."""
    try:
        code = main()
    except (HaversackError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = USAGE_EXIT_CODE
    sys.exit(code)
