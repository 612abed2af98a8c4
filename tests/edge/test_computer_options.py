"""The option --llama-build: it is heeded before llama.cpp is loaded, and checked after."""

import json
import os
import subprocess
import sys

import pytest

from haversack.devices._native import builds, chosen
from haversack.devices.errors import PromptError
from haversack.edge.computer_options import BuildOptions, DoctorOptions
from haversack.edge.options import ModelOptions

PROGRAM = [sys.executable, "-m", "haversack.edge"]
USABLE = [found.build.package for found in builds.installed() if not found.refusal]


def haversack(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, builds.VARIABLE: "another"}  # the option counts
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=environment)


def test_the_build_that_is_loaded_may_be_named() -> None:
    assert BuildOptions(llama_build=chosen.build.package) != BuildOptions()
    assert ModelOptions(llama_build=chosen.build.package).llama_build == chosen.build.package
    with pytest.raises(PromptError, match=f"other, but {chosen.build.package} is loaded: set HAV"):
        DoctorOptions(llama_build="other")


@pytest.mark.parametrize("package", USABLE)
def test_the_build_that_is_named_is_loaded(package: str) -> None:
    done = haversack("doctor", "--json", f"--llama-build={package}")
    assert json.loads(done.stdout)["llama_build"]["value"] == package
    assert done.stderr == ""


def test_a_name_that_is_no_build_ends_the_program() -> None:
    done = haversack("run", "-p", "Once", "--llama-build", "ollama")
    assert (done.returncode, done.stdout) == (2, "")
    names = ", ".join(builds.NAMES)
    expected = f"haversack: there is no build of llama.cpp called 'ollama': give {names}\n"
    assert done.stderr == expected
