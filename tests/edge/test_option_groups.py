"""Groups of options become commands, and wrong numbers are told as they were typed."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from haversack.devices.errors import PromptError
from haversack.edge.option_groups import parsed_number, takes


@dataclass(frozen=True)
class Fruit:
    name: Annotated[str, typer.Argument()] = "apple"
    ripe: Annotated[bool, typer.Option("--ripe")] = False


@dataclass(frozen=True)
class Basket:
    num_fruits: Annotated[int | None, typer.Option("--num-fruits", "-n")] = None
    weight: Annotated[float, typer.Option()] = 0.5


def filled(*arguments: str) -> tuple[Fruit, Basket]:
    """What a command with both groups gets for these arguments."""
    got: list[tuple[Fruit, Basket]] = []
    app = typer.Typer()

    @app.command()
    @takes(Fruit, Basket)
    def fill(fruit: Fruit, basket: Basket) -> None:
        got.append((fruit, basket))

    app(list(arguments), standalone_mode=False)
    assert fill.__doc__ is None
    return got[0]


def test_a_command_gets_its_groups_filled() -> None:
    assert filled() == (Fruit(), Basket())
    given = filled("pear", "--ripe", "-n", "3", "--weight", "1e-1")
    assert given == (Fruit("pear", True), Basket(3, 0.1))


def test_numbers_are_refused_as_they_were_typed() -> None:
    with pytest.raises(PromptError, match="--num-fruits is 'many': give a whole number"):
        filled("-n", "many")
    with pytest.raises(PromptError, match="--weight is 'heavy': give a number"):
        filled("--weight", "heavy")
    assert parsed_number("n", "-3", int) == -3
