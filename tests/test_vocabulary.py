"""Names and docs use the field's terms: no private words for queues, threads, keys or tokens."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BANNED = {
    *("aims", "askers", "carry", "crew", "desk", "grants", "kitchen", "landed", "lent"),
    *("place", "spool", "visit"),
}
# A variable `line` may be a line of text. A module, a class or an attribute of that name is not.
LINE = {"line"}
ORDINARY = re.compile(r"command line|in place|carr(y|ies|ied) out|take its place", re.IGNORECASE)
FOLDERS = ("prefetch_kit", "tests", "benchmarks", "example_app")
MODULES = sorted(
    path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks/README.md"]


def words(identifier: str) -> set[str]:
    """The words of snake_case and CamelCase, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def private_names(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines and that contain a banned word."""
    for node in ast.walk(tree):
        banned = BANNED
        match node:
            case ast.ClassDef(name=name):
                banned = BANNED | LINE
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                pass
            case ast.Name(id=name, ctx=ast.Store()):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()):
                if name.strip("_") == "line":  # `_line_number` is fine
                    yield name
            case ast.alias(asname=str(name)):
                pass
            case _:
                continue
        if banned & words(name):
            yield name


def private_words(text: str) -> Iterable[str]:
    """The banned words of a page, outside of the expressions that are ordinary English."""
    found = re.findall(r"[a-z]+", ORDINARY.sub("", text).lower())
    return [word for word in found if word in BANNED]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_names_are_terms_of_the_field(path: Path) -> None:
    """No module, class, function, variable or parameter has a private word in its name."""
    assert not (BANNED | LINE) & words(path.stem)
    assert list(private_names(ast.parse((ROOT / path).read_text()))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_ordinary_words(path: Path) -> None:
    """The documentation has none of the private words either."""
    assert private_words(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        *("class Line: pass", "class KitchenLine: pass", "def visit(): pass", "self._line = 1"),
        *("def f(place): pass", "import x as crew", "grants_by_appid = {}"),
        "class HTTPDesk: pass",
    ],
)
def test_private_names_are_found(source: str) -> None:
    """In each kind of definition, at each position in the name."""
    assert list(private_names(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        *("deadline = 1", "line_number = 1", "def splitlines(): pass", "self._line_number = 1"),
        *("for line in file: pass", "def f(request_line): pass", "replaced = placeholder = 1"),
    ],
)
def test_ordinary_names_are_allowed(source: str) -> None:
    """Lines of text, and longer words that contain a banned one."""
    assert list(private_names(ast.parse(source))) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Carried out on the command line, in place of another.", []),
        ("The place of a visit", ["place", "visit"]),
    ],
)
def test_words_of_pages(text: str, found: list[str]) -> None:
    """Ordinary expressions are allowed, single words are not."""
    assert private_words(text) == found
