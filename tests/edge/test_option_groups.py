"""Groups of options become commands, and wrong numbers are told as they were typed."""

from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Place:
    path: Annotated[Path | None, typer.Argument(metavar="PLACE")] = None
    near: Annotated[list[Path] | None, typer.Option()] = None


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


def test_paths_are_those_that_were_typed() -> None:
    """Path("./x") is Path("x"), and Path("") is the current folder."""
    places: list[Place] = []
    app = typer.Typer()
    app.command()(takes(Place)(places.append))
    app(["./x", "--near", "y", "--near", "./z"], standalone_mode=False)
    assert places == [Place(Path.cwd() / "x", [Path("y"), Path.cwd() / "z"])]
    with pytest.raises(PromptError, match="PLACE is empty: give a path, or leave it out"):
        app([""], standalone_mode=False)
    with pytest.raises(PromptError, match="--near is empty"):
        app(["x", "--near", ""], standalone_mode=False)
