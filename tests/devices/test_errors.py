import inspect
import re

import pytest

from haversack.devices import errors
from haversack.devices.errors import BudgetError, HaversackError, StorageError


def drawn_tree() -> dict[str, str]:
    """Return the parent of each class by name, as the module's docstring draws the tree."""
    parents: dict[str, str] = {}
    above = {0: "HaversackError"}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            parents[match[2]] = above[depth - 1]
            above[depth] = match[2]
    return parents


def all_errors() -> list[type[HaversackError]]:
    classes = [thing for thing in vars(errors).values() if inspect.isclass(thing)]
    return [cls for cls in classes if issubclass(cls, HaversackError) and cls != HaversackError]


def test_the_docstring_draws_the_tree() -> None:
    parents = {cls.__name__: cls.__bases__[0].__name__ for cls in all_errors()}
    assert drawn_tree() == parents


@pytest.mark.parametrize("cls", all_errors())
def test_one_except_catches_them_all(cls: type[HaversackError]) -> None:
    assert issubclass(cls, HaversackError)
    assert cls.exit_code in (2, 3)
    assert cls.__doc__


def test_a_budget_error_carries_its_numbers() -> None:
    error = BudgetError("needs 5 B, budget is 4 B: raise --ram", need_bytes=5, have_bytes=4)
    assert (error.need_bytes, error.have_bytes, error.exit_code) == (5, 4, 3)
    assert str(error) == "needs 5 B, budget is 4 B: raise --ram"


def test_a_storage_error_is_an_os_error_with_its_message_as_written() -> None:
    with pytest.raises(OSError) as caught:
        raise StorageError("model.gguf: wanted 5 bytes at offset 0, got 4")
    assert str(caught.value) == "model.gguf: wanted 5 bytes at offset 0, got 4"
