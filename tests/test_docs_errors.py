"""Does docs/errors.md name every message that the package raises or warns with?

A row of the page begins with the first words of a message in code, then its type: "| `Expected t as
a 1-D tensor` | `ValueError` | cause | cure |", with "…" where the message has a value.
"""

import ast
import builtins
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
WARNINGS = ("warn", "warn_caller")


class Message(NamedTuple):
    where: str
    type: str
    text: str  # "…" in the place of each value


class Row(NamedTuple):
    fragments: list[str]
    types: list[str]


# What the source says


@lru_cache
def modules() -> dict[str, ast.Module]:
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted((ROOT / "pyg_sinode").rglob("*.py"))}


@lru_cache
def own_types() -> dict[str, str]:
    """The module of every exception that the package defines."""
    return {node.name: name for name, tree in modules().items() for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Warning"))}


def is_exception(name: str) -> bool:
    builtin = getattr(builtins, name, None)
    return name in own_types() or (isinstance(builtin, type) and issubclass(builtin, Exception))


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@lru_cache
def makers() -> dict[tuple[str, str], ast.FunctionDef]:
    """The functions that give an exception back, by file and name, as their annotation says."""
    return {(name, node.name): node for name, tree in modules().items() for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.returns is not None
            and is_exception(ast.unparse(node.returns).strip("'\"").rpartition(".")[2])}


def maker_of(name: str, file: str) -> tuple[str, ast.FunctionDef] | None:
    """The function of that name, of the same file if it is there."""
    if (file, name) in makers():
        return file, makers()[file, name]
    found = [(at, node) for (at, own), node in makers().items() if own == name
             and not (node.args.args and node.args.args[0].arg == "self")]
    found = found or [(at, node) for (at, own), node in makers().items() if own == name]
    return found[0] if len(found) == 1 else None


def text_of(node: ast.expr | None, known: dict[str, str]) -> str:
    """The text of a message, "…" for what is not known before the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        text = "".join(text_of(part, known) for part in node.values)
        return re.sub("…+", "…", text)
    if isinstance(node, ast.FormattedValue) and node.format_spec is None:
        return text_of(node.value, known) if isinstance(node.value, ast.Name) else "…"
    if isinstance(node, ast.BinOp):
        return text_of(node.left, known) + text_of(node.right, known)
    return known.get(node.id, "…") if isinstance(node, ast.Name) else "…"


def assigned(function: ast.AST) -> dict[str, str]:
    """The texts of names that a function gives a value to once."""
    stored = Counter(node.id for node in ast.walk(function)
                     if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.targets[0].id: text_of(node.value, {}) for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and stored[node.targets[0].id] == 1}


def arguments(call: ast.Call, function: ast.FunctionDef, known: dict[str, str]) -> dict[str, str]:
    """The texts of a function's parameters in a call."""
    names = [arg.arg for arg in function.args.args if arg.arg != "self"]
    defaults = function.args.defaults
    texts = dict(zip(names[len(names) - len(defaults):], [text_of(d, {}) for d in defaults],
                     strict=True))
    texts |= {name: text_of(arg, known) for name, arg in zip(names, call.args, strict=False)}
    return texts | {k.arg: text_of(k.value, known) for k in call.keywords if k.arg}


def made_by(node: ast.expr, file: str, known: dict[str, str]) -> list[tuple[str, str]] | None:
    """The types and texts of an expression after raise; None where they cannot be told."""
    if isinstance(node, ast.Name) and is_exception(node.id):
        return [(node.id, "")]
    if not isinstance(node, ast.Call):
        return None
    name = last_name(node.func)
    if is_exception(name):
        return [(name, text_of(node.args[0], known) if node.args else "")]
    found = maker_of(name, file)
    if found is None:
        return None
    at, function = found
    texts = assigned(function) | arguments(node, function, known)
    given = [made_by(each.value, at, texts) for each in ast.walk(function)
             if isinstance(each, ast.Return) and isinstance(each.value, ast.Call)]
    return [pair for pairs in given for pair in pairs or []]


def in_functions(tree: ast.Module) -> Iterator[tuple[ast.AST, dict[str, str]]]:
    """Every statement and expression, with the texts of the innermost function around it."""
    stack: list[tuple[ast.AST, dict[str, str]]] = [(tree, {})]
    while stack:
        node, known = stack.pop()
        yield node, known
        if isinstance(node, ast.FunctionDef):
            known = assigned(node)
        stack.extend((child, known) for child in ast.iter_child_nodes(node))


def of_statement(node: ast.AST, file: str, known: dict[str, str]) -> list[tuple[str, str]] | None:
    if isinstance(node, ast.Raise) and node.exc is not None:
        return made_by(node.exc, file, known)
    if isinstance(node, ast.Call) and last_name(node.func) in WARNINGS:
        text = text_of(node.args[0], known)
        kind = last_name(node.args[1]) if len(node.args) > 1 else "UserWarning"
        return [] if text == "…" else [(kind, text)]  # warn_caller itself
    return []


@lru_cache
def messages() -> list[Message]:
    found = []
    for file, tree in modules().items():
        for node, known in in_functions(tree):
            pairs = of_statement(node, file, known)
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if pairs is None:
                pairs = [("unreadable", ast.unparse(node))]
            found += [Message(where, *pair) for pair in pairs]
    return sorted(set(found))


# What the page says


@lru_cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@lru_cache
def rows() -> list[Row]:
    """The rows whose first cell quotes messages and whose second names types."""
    cells = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]
    found = [Row(re.findall(r"`([^`]+)`", first), re.findall(r"`(\w+)`", second))
             for first, second, *_ in cells]
    return [row for row in found if all(map(is_exception, row.types)) and row.types
            and not is_exception(row.fragments[0])]


def has_row(message: Message) -> bool:
    return any(message.type in row.types and any(map(message.text.startswith, row.fragments))
               for row in rows())


# Do they agree?


def test_every_message_has_a_row():
    missing = [m for m in messages() if m.text and m.type != "unreadable" and not has_row(m)]
    assert not missing, "\n".join(["", *(
        f"{m.where}: add to docs/errors.md, in the section it belongs to, a row\n"
        f"    | `{m.text.partition(' (got')[0]}` | `{m.type}` | cause | cure |" for m in missing)])


def test_every_row_quotes_a_message():
    gone = [(fragment, row.types) for row in rows() for fragment in row.fragments if not any(
        m.text.startswith(fragment) and m.type in row.types for m in messages())]
    assert not gone, f"no message of that type begins so: {gone}; mend docs/errors.md"


def test_the_type_of_a_row_is_raised_with_its_messages():
    wrong = [(row.fragments, kind) for row in rows() for kind in row.types if not any(
        m.type == kind and any(map(m.text.startswith, row.fragments)) for m in messages())]
    assert not wrong, f"no such message has that type: {wrong}; mend docs/errors.md"


def test_a_row_quotes_enough_to_tell_messages_apart():
    whole = {m.text for m in messages()}
    short = [f for row in rows() for f in row.fragments if f not in whole
             and len(re.findall(r"\w+", f.removeprefix("Expected"))) < 2]
    assert not short, f"too short to tell messages apart, in docs/errors.md: {short}; quote more"


def test_every_raise_can_be_read():
    hidden = [f"{m.where}: {m.text}" for m in messages() if m.type == "unreadable"]
    assert not hidden, (f"{hidden}: raise an exception by name, or by a function whose annotation "
                        "says that it returns one, so that its message can be found")


def test_every_type_is_named():
    missing = {m.type for m in messages()} - {"unreadable"} - set(re.findall(r"`(\w+)`", page()))
    assert not missing, f"name these types in docs/errors.md: {sorted(missing)}"


@pytest.mark.parametrize("name", own_types())
def test_the_table_of_types_has_the_base_and_the_fields_of_each(name):
    module = own_types()[name].removesuffix(".py").replace("/", ".")
    cls = getattr(importlib.import_module(module), name)
    line = next((line for line in page().splitlines() if line.startswith(f"| `{name}` |")), "")
    fields = set(vars(cls("")))
    for base in cls.__mro__:
        fields |= set(vars(base).get("__annotations__", {}))
    missing = ({cls.__base__.__name__} | fields) - set(re.findall(r"`(\w+)`", line))
    assert not missing, f"the row of `{name}` in docs/errors.md has to name {sorted(missing)}"
