"""What the processor can do, as the system tells it."""

import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BEGIN_BYTES = 16 << 10  # more than one processor takes; machines have hundreds of them


def instruction_sets() -> frozenset[str] | None:
    """Return the processor's vector instructions and other features, such as "avx2", by the names
    that Linux has for them; None where the system tells none."""
    try:
        with _CPU_INFO.open("rb", buffering=0) as file:
            begin = file.read(_BEGIN_BYTES).decode(errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", begin, re.MULTILINE)
    return frozenset(flags[1].lower().split()) if flags else None
