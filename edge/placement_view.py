"""What people read of a placement: each choice with its reason."""

from haversack.edge.model_plan import DENSE, RESIDENT, Plan
from haversack.edge.placement import FIXED


def reasons(planned: Plan) -> list[str]:
    """Return why the plan has what where, a line for each memory, and what that does to the output;
    nothing for a plan without devices."""
    if not planned.devices:
        return []
    lines = [f"{device.name}: {device.why}" for device in planned.devices]
    if not any(device.is_used for device in planned.devices):
        return [*lines, "RAM: the model runs there alone"]
    if planned.mode == DENSE:
        return [*lines, f"RAM: {_trunk_in_ram(planned)}", _output_reason(planned)]
    return [*lines, *_host_reasons(planned), _output_reason(planned)]


def _host_reasons(planned: Plan) -> list[str]:
    """Return what lies in RAM, and what is left for the drive."""
    assert planned.mode != RESIDENT, "a plan with slots on devices streams"
    total = sum(pool.num_experts * len(pool.layers) for pool in planned.pools)
    in_ram = sum(pool.num_slots for pool in planned.pools)
    on_devices = sum(device.num_slots for device in planned.devices)
    trunk = _trunk_in_ram(planned)
    lines = [f"RAM: {trunk}, and slots for all experts"]
    if in_ram < total:
        lines = [f"RAM: {trunk}, and {in_ram} of {total} experts"]
        missing = total - in_ram - on_devices
        if missing > 0:
            lines.append(f"drive: {missing} experts ({missing / total:.0%}) are read when needed")
    return lines


def _trunk_in_ram(planned: Plan) -> str:
    if any(device.num_layers for device in planned.devices):
        return "the rest of the trunk and of the KV cache"
    return "the trunk and the KV cache"


def _output_reason(planned: Plan) -> str:
    """Return what the placement does to the bits of the output."""
    placed = [device for device in planned.devices if device.is_used]
    others = [device.name for device in placed if device.rounds_otherwise]
    if not others:
        return "output: llama.cpp's bits, where each device computes on a processor of this kind"
    names = " and ".join(others)
    moves = (
        "experts stay where they are, so runs repeat with --speculate off"
        if planned.placement == FIXED
        else "experts move, so runs need not repeat: --placement fixed"
    )
    return f"output: {names} rounds otherwise than the CPU, so it is not the CPU's; {moves}"
