"""On each build of llama.cpp that is installed, logits equal plain llama.cpp's of that build."""

import json
import os
import subprocess
import sys

import pytest

from haversack.devices._native import builds, chosen

# The process loads another build than this one's, so everything happens in it.
PROGRAM = """
import json, sys
import numpy as np
from haversack import edge
from haversack.devices.llama import build_name
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed

tokens, prefill = list(range(300, 372)), 40
planned = streamed(edge.plan(edge.builtin_model(), ram="2GiB", ctx=256, threads=2), 0.2)
options = edge.LoadOptions(cache_dir=sys.argv[1], warm_start=False)
with edge.load(planned, options=options) as model:
    logits, misses = model.logits(tokens, prefill=prefill), model.stats().misses
    model.check_integrity()
    rows = model.verify(tokens[:7])
with PlainLlama(planned.path, 256, 2) as plain:
    same = np.array_equal(logits, plain.logits(tokens, prefill))
    plain.rewind(len(tokens))
    same_rows = []
    for row, token in zip(rows, tokens):
        plain.decode([token])
        same_rows.append(bool(np.array_equal(row, plain.last_logits())))
print(json.dumps({"build": build_name(), "same": same, "rows": same_rows, "misses": misses}))
"""


@pytest.mark.parametrize("found", builds.installed(), ids=lambda found: found.build.package)
def test_logits_are_those_of_the_same_build(
    found: builds.Installed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if found.refusal or found.build == chosen.build:
        pytest.skip(found.refusal or "test_exactness.py compares the build that is loaded here")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("trunks"))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, builds.VARIABLE: found.build.package},
    )
    result = json.loads(told.stdout)
    assert result["build"] == f"{found.build.package} {found.build.version}"
    assert result["same"] and result["rows"] == [True] * 7
    assert result["misses"] > 100
    assert told.stderr == ""
