"""Guards of the house rules that no other tool checks; they read the sources, not the package."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tools", "edge", "offload", "cache", "quant", "devices")  # each imports to its right
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_ARGUMENTS = 6
ANY_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}
LEFT_FOR_LATER = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X)\b")

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes_of(path) if isinstance(node, ANY_FUNCTION))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports: `from haversack import cache` is `haversack.cache`."""
    package = ("haversack", *path.relative_to(ROOT).parent.parts)
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_the_folders_are_here() -> None:
    assert SOURCES
    assert TESTS
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file(), folder
        assert (ROOT / folder / "py.typed").is_file(), folder
        assert (ROOT / ".typing" / "haversack" / folder).resolve() == ROOT / folder


def test_haversack_stays_a_namespace() -> None:
    assert not (ROOT / "haversack").exists()
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_to_the_right(folder: str) -> None:
    allowed = tuple(f"haversack.{each}" for each in FOLDERS[FOLDERS.index(folder) :])
    for path in (path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder):
        wrong = {
            name
            for name in imported(path)
            if name.split(".")[0] == "haversack" and not name.startswith(allowed)
        }
        assert not wrong, f"{short(path)} imports {wrong}"


def test_folders_are_imported_by_full_name() -> None:
    for path in SOURCES + TESTS:
        bare = {name for name in imported(path) if name.split(".")[0] in {*FOLDERS, "tests"}}
        assert not bare, f"{short(path)} imports {bare}"


BINDINGS = (
    *("devices/_native/", "offload/_native.py", "cache/_native.py"),
    *("devices/system/darwin.py", "devices/system/windows.py"),  # to the system's own libraries
)


def test_only_the_bindings_import_ctypes() -> None:
    importing = {
        short(path)
        for path in SOURCES + TESTS
        if "ctypes" in {name.split(".")[0] for name in imported(path)}
    }
    assert not {name for name in importing if not name.startswith(BINDINGS)}


SAID_TWICE = (  # a constant in Python, and the C++ that has it too
    ("offload/tier.py", "KEPT_PAIRS", "offload/native/device_tier.cpp"),
    ("tests/offload/test_promotions.py", "MOST_SHARE", "offload/native/promotions.cpp"),
    ("offload/expert_engine.py", "MOST_TABLE_BYTES", "offload/native/engine.cpp"),
)


@pytest.mark.parametrize(("python", "name", "cpp"), SAID_TWICE)
def test_a_constant_is_the_same_in_both_languages(python: str, name: str, cpp: str) -> None:
    value = re.compile(rf"\b_?{name} = ([^;#\n]+?)\s*[;#\n]")
    ours, theirs = (value.findall((ROOT / each).read_text("utf-8")) for each in (python, cpp))
    assert len(ours) == 1 and ours == theirs


def test_a_docstring_says_what_the_file_is_for() -> None:
    assert not [short(path) for path in SOURCES if not ast.get_docstring(tree_of(path))]


def test_files_are_short() -> None:
    num_lines = {short(path): len(text_of(path).splitlines()) for path in SOURCES}
    assert not {name: lines for name, lines in num_lines.items() if lines > MAX_FILE_LINES}


def test_functions_are_short() -> None:
    for path in SOURCES + TESTS:
        for function in functions(path):
            num_lines = (function.end_lineno or 0) - function.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{short(path)}: {function.name}"


def test_functions_take_few_arguments() -> None:
    for path in SOURCES + TESTS:
        for function in functions(path):
            named = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            num_arguments = len([arg for arg in named if arg.arg not in ("self", "cls")])
            assert num_arguments <= MAX_ARGUMENTS, f"{short(path)}: {function.name}"


def test_nothing_is_left_for_later() -> None:
    assert not [short(path) for path in SOURCES + TESTS if LEFT_FOR_LATER.search(text_of(path))]


def test_names_say_something() -> None:
    assert not [path for path in SOURCES + TESTS if path.stem.strip("_") in VAGUE_NAMES]


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_the_error_tree_is_drawn() -> None:
    tree = tree_of(ROOT / "devices" / "errors.py")
    drawn = re.findall(r"\b\w+Error\b", ast.get_docstring(tree) or "")
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert drawn == defined
