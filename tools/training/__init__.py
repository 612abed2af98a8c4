"""Training, judging and exporting the built-in model. Needs the extra packages of `train`."""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise SystemExit("error: training needs torch, which is not installed: pip install '.[train]'")
