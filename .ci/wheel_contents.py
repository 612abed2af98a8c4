"""Fails unless the wheel holds every tracked file of the six folders and our own library, and
nothing beside them.

python .ci/wheel_contents.py WHEEL FILE...
"""

import sys
import zipfile
from pathlib import PurePosixPath

FOLDERS = ("edge", "offload", "cache", "quant", "devices", "tools")
LIBRARY = "haversack/devices/native/libhaversack.so"


def main(wheel: str, *tracked: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {f"haversack/{file}" for file in tracked if PurePosixPath(file).parts[0] in FOLDERS}
    wanted |= {f"haversack/{folder}/py.typed" for folder in FOLDERS}
    wanted |= {LIBRARY, "haversack/__init__.py"}
    packed = {name for name in names if ".dist-info/" not in name}
    if missing := sorted(wanted - packed):
        sys.exit(f"missing in {wheel}: {', '.join(missing)}")
    if extra := sorted(packed - wanted):
        sys.exit(f"not ours, but in {wheel}: {', '.join(extra)}")
    if not any(
        name.startswith("haversack/edge/builtin/") and name.endswith(".gguf") for name in names
    ):
        sys.exit(f"{wheel} lacks the built-in model")
    print(f"{wheel}: {len(packed)} files, all there")


if __name__ == "__main__":
    main(*sys.argv[1:])
