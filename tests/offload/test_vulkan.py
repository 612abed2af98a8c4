"""A GPU's interface without a GPU: Vulkan on a software driver, with the prebuilt back end."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from haversack.devices import modules
from haversack.edge.cache_dir import modules_folder

# Prints the logits' choices, and whether two runs give the same bits: in the host's memory, with
# the whole model on the device, and with half of the experts there. In a process of its own,
# because a backend stays loaded.
PROGRAM = """
import json, sys
from contextlib import closing
from pathlib import Path
import numpy as np
from haversack import edge
from haversack.devices.backends import find_device
from haversack.devices.errors import DeviceError
from haversack.devices.llama import ContextShape
from haversack.devices.trunk_placement import LayersOn, TrunkPlacement
from haversack.offload.engine import LoadHooks, open_resident, open_streamed
from haversack.offload.pool import plan_pools
from haversack.offload.tier import DeviceTier
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import ensure_trunk

folder, count = Path(sys.argv[1]), int(sys.argv[2])
SHAPE = ContextShape(ctx_tokens=256, batch_tokens=64, threads=1)
PROMPT = list(range(300, 316))
try:
    device = find_device("Vulkan0", folder)
except DeviceError as error:
    print(json.dumps({"skip": str(error)}))
    sys.exit()
path = edge.builtin_model()
geometry = read_geometry(path)

def forced(engine, tokens):
    with closing(engine):
        engine.context.decode(PROMPT)
        rows = [engine.context.logits()]
        for place in range(count):
            token = int(rows[-1].argmax()) if tokens is None else tokens[place]
            engine.context.decode([token])
            rows.append(engine.context.logits())
    return np.stack(rows)

def half():
    used = geometry.num_experts_per_tok
    plans = plan_pools(geometry.layers, used, 2 * geometry.expert_bytes)
    slots = tuple(len(plan.layers) * plan.num_experts // 2 for plan in plans)
    tier = DeviceTier(device.address, device.name, slots, fixed=True)
    hooks = LoadHooks(tiers=(tier,), warm_start=False)
    engine = open_streamed(geometry, ensure_trunk(geometry, folder), SHAPE, lambda: plans, hooks)
    engine.on_close(lambda: hits.append(engine.experts.tier_counts()[0].hits))
    return engine

hits = []
whole = TrunkPlacement((LayersOn(device, 99),))
host = forced(open_resident(path, SHAPE), None)
tokens = host.argmax(1)[:-1].tolist()
kinds = {"whole": lambda: open_resident(path, SHAPE, placement=whole), "half": half}
found = {"host": host.argmax(1).tolist(), "device": device.description}
for name, opened in kinds.items():
    first, again = (forced(opened(), tokens) for _ in range(2))
    found[name] = {
        "choices": first.argmax(1).tolist(),
        "repeats": bool((first == again).all()),
        "is_finite": bool(np.isfinite(first).all()),
    }
print(json.dumps({**found, "hits": hits}))
"""


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program tells."""
    if modules.VULKAN not in [each.backend for each in modules.list_modules(modules_folder(None))]:
        pytest.skip("this build of llama.cpp has no module for Vulkan")
    environment = {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0"}  # else software is skipped
    if request.config.pluginmanager.hasplugin("cacheprovider"):  # shaders take half a minute
        environment["MESA_SHADER_CACHE_DIR"] = str(request.config.cache.mkdir("shaders"))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("vulkan")), "16"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if "skip" in found:
        pytest.skip(found["skip"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("where", ["whole", "half"])
def test_the_built_in_model_on_vulkan(
    where: str, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results repeat, and choose nearly what the CPU chooses: each kind of processor rounds in
    its own way."""
    assert told[where]["repeats"] and told[where]["is_finite"]
    pairs = list(zip(told["host"], told[where]["choices"], strict=True))
    agreement = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    with capsys.disabled():
        print(f"\n{told['device']}, {where}: top-1 agreement with the CPU {agreement:.1%}")
    assert agreement > 0.7


@pytest.mark.slow
def test_experts_on_vulkan_are_used(told: Any) -> None:
    assert all(hits > 0 for hits in told["hits"])
