"""The commands of `haversack backend`: make, list and lend what brings devices, such as GPUs."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import typer

from haversack.devices import modules, rpc
from haversack.devices._native import chosen
from haversack.devices.backends import list_devices
from haversack.devices.cores import count_cores
from haversack.devices.errors import DeviceError, PromptError
from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import modules_folder
from haversack.edge.computer_options import BuildOptions
from haversack.edge.console import notice, write_json, write_table, write_text
from haversack.edge.option_groups import takes
from haversack.edge.options import CacheOptions, OutputOptions

backend_app = typer.Typer(help="Devices: make, list and lend what brings them.")


@dataclass(frozen=True)
class RecipeOptions(BuildOptions):
    """Which backend is made."""

    backend: Annotated[
        str, typer.Argument(metavar="BACKEND", help=f"One of {', '.join(modules.BACKENDS)}.")
    ]


@dataclass(frozen=True)
class LendOptions(BuildOptions):
    """Where this computer is lent. Raises PromptError for no threads."""

    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT",
            help="Where to listen; without a password, so in a trusted network only.",
        ),
    ] = "127.0.0.1:50052"
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads that compute; one a core unless given.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads is not None and self.threads < 1:
            raise PromptError(f"--threads is {self.threads}: give 1 or more")

    @property
    def endpoint(self) -> rpc.Endpoint:
        """Where to listen. Raises PromptError for an address that is none."""
        with suppress(DeviceError):  # it would tell of a device's name, which was not given
            found = rpc.endpoint_of(f"RPC[{self.address}]")
            if found is not None:
                return found
        raise PromptError(
            f"{self.address!r} is no address to listen at: give HOST:PORT, as in 192.168.1.7:50052"
        )


@backend_app.command("build")
@takes(RecipeOptions, CacheOptions)
def build_backend(asked: RecipeOptions, cache: CacheOptions) -> None:
    """Make a backend's module for the build of llama.cpp in use, from its sources."""
    from haversack.devices import module_build

    made = module_build.build_module(
        asked.backend, modules_folder(cache.folder), lambda step: notice(f"haversack: {step}")
    )
    modules.load_module(asked.backend, modules_folder(cache.folder))
    write_text(f"{made}\n")


@backend_app.command("ls")
@takes(BuildOptions, CacheOptions, OutputOptions)
def list_backends(_: BuildOptions, cache: CacheOptions, output: OutputOptions) -> None:
    """List the modules for the build of llama.cpp in use, and the devices that it has without."""
    found = modules.list_modules(modules_folder(cache.folder))
    devices = [(each, each.memory()) for each in list_devices()]
    if output.json:
        write_json(
            {
                "modules": [{"backend": each.backend, "path": str(each.path)} for each in found],
                "devices": [
                    {"name": each.name, "kind": each.kind, **memory._asdict()}
                    for each, memory in devices
                ],
            }
        )
        return
    rows = [(each.name, each.kind, f"{format_bytes(memory.total_bytes)}, {each.description}")
            for each, memory in devices]  # fmt: skip
    rows += [(each.backend, "module", str(each.path)) for each in found]
    write_table(f"{chosen.build.package} {chosen.build.version}", ("name", "kind", "what"), rows)


@backend_app.command("serve")
@takes(LendOptions, CacheOptions)
def lend_computer(asked: LendOptions, cache: CacheOptions) -> None:
    """Lend this computer's CPU and memory, as the device RPC[HOST:PORT], to one model at a time."""
    num_threads = asked.threads or count_cores().num_cores
    rpc.serve(asked.endpoint, num_threads, modules_folder(cache.folder))
