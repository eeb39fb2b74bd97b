"""The one reader of command lines: a recipe file, its overrides, and a stage's own flags."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, HelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from pipeline.config.checks import check
from pipeline.config.paths import expand_paths
from pipeline.config.recipe import Recipe, Source, Teacher, Validation
from pipeline.config.recipe_file import read_recipe_file
from pipeline.core.errors import BadInput, one_line
from pipeline.core.log import set_verbosity
from pipeline.core.version import add_version

# --help shows the text under each field; --print_completion writes a shell's completion
set_parsing_settings(docstring_parse_attribute_docstrings=True, add_print_completion_argument=True)

RECIPES = Path(__file__).parent / "recipes"


DEFAULT = "demo"
LARGEST, SEEDS = 10**12, 2**63
_PARTS = {"data.sources": Source, "data.validation": Validation, "teachers": Teacher}


def parser(description: str) -> ArgumentParser:
    """A stage's command line: ``--recipe`` and every field of the recipe. Stages add flags of their own."""
    # naming every option takes a screen
    usage = "%(prog)s [RUN] [--recipe RECIPE] [--SECTION.FIELD VALUE ...] [options]"
    p = _Parser(exit_on_error=False, description=description, usage=usage)
    p.add_argument("run", nargs="?", default="", metavar="RUN", help="a run directory: its recipe, and what it holds")
    p.add_argument("--recipe", action="config", help=f"recipe file, or name of a shipped one (default: {DEFAULT})")
    p.add_class_arguments(Recipe)
    add_verbosity(p)
    add_version(p)
    return p


class _Parser(ArgumentParser):
    """Its help ends with the fields of what a recipe holds in lists, or may leave out."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        parts = ArgumentParser(usage=SUPPRESS, add_help=False, prog=self.prog)
        for option, part in _PARTS.items():
            parts.add_class_arguments(part, option)
        text = parts.format_help()
        return f"{super().format_help(formatter)}\nFields that an option of this name sets in the last of a list:\n\n{text}"


def add_verbosity(p: ArgumentParser) -> None:
    """``--quiet`` and ``--verbose``, which `apply_verbosity` reads."""
    p.add_argument("--quiet", action="store_true", help="say warnings and errors only")
    p.add_argument("--verbose", action="store_true", help="say more, on every rank")


def apply_verbosity(flags: Namespace) -> None:
    """Sets the logger as the command line wants it."""
    set_verbosity(quiet=flags.quiet, verbose=flags.verbose)


def parse(
    p: ArgumentParser, argv: Sequence[str] | None = None, *, needs_recipe: bool = True
) -> tuple[Recipe, Namespace]:
    """The resolved recipe and the namespace of the stage's own flags.

    needs_recipe: RUN stands for its recipe, too, and is refused without one; else it is the run directory alone.

    Raises BadInput for an unknown key, a value of the wrong type, or a combination that `check` refuses.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    recipe_file, rest = _take_recipe(_of_run(words, _run_at(p, words), needs_recipe))
    try:
        files = [word for path in _with_extended(recipe_file) for word in ("--recipe", str(path))]
        namespace = p.parse_args([*files, *rest])
        recipe = p.instantiate(namespace)
    except (ArgumentError, yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        where = f"recipe {recipe_file} and its overrides; --help explains every field"
        raise BadInput(f"{_plain(error)} ({where})") from None
    if absurd := list(_absurd_numbers(namespace.as_dict())):
        raise BadInput(f"{'; '.join(absurd)}: numbers must be finite and below {LARGEST:.0e}")
    resolved = Recipe(**{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__})
    expand_paths(resolved)
    resolved.extends = ""  # it has all of the other's fields by now
    check(resolved)
    apply_verbosity(namespace)
    return resolved, namespace


def _absurd_numbers(value: Any, name: str = "") -> Iterator[str]:
    """Names and values of numbers that no machine could use; they overflow somewhere, hours later maybe."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _absurd_numbers(part, f"{name}.{key}" if name else str(key))
    if isinstance(value, int | float) and not abs(value) < (SEEDS if name.endswith("seed") else LARGEST):
        yield f"{name} is {str(value)[:20]}"


def _plain(error: Exception) -> str:
    """The message on one line, with `int` for "<class 'int'>" and `Literal` for "typing.Literal"."""
    words = one_line(error)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(\w+)", r"\1\2", words)


def _run_at(p: ArgumentParser, argv: Sequence[str]) -> int | None:
    """Where RUN stands: the first word that is neither an option nor the value of one."""
    takes = ""  # how many values the option before has
    for at, word in enumerate(argv):
        if word.startswith("-"):
            action = p._option_string_actions.get(word)  # None: an option with its value, or a field of a list's items
            takes = "" if "=" in word else "1" if action is None or action.nargs is None else str(action.nargs)
        elif takes in ("", "0"):
            return at
        else:
            takes = takes if takes in ("*", "+") else ""
    return None


def _of_run(argv: list[str], at: int | None, needs_recipe: bool) -> list[str]:
    """RUN as options: its run directory and, where no recipe is named, its recipe. Raises BadInput where that is needed and
    not there."""
    if at is None:
        return argv
    run, rest = argv[at], [*argv[:at], *argv[at + 1 :]]
    named = any(word.partition("=")[0] == "--recipe" for word in argv)
    recipe = Path(run) / "recipe.yaml"
    if not (named or recipe.is_file()) and needs_recipe:
        raise BadInput(f"{run} is no run directory (it has no recipe.yaml): name one, or --recipe X")
    return [*rest, "--run_dir", run, *(["--recipe", str(recipe)] if needs_recipe and not named else [])]


def _take_recipe(argv: list[str]) -> tuple[Path, list[str]]:
    """The recipe comes first, wherever it was typed, so that every override wins over it."""
    name, rest, words = DEFAULT, [], iter(argv)
    for word in words:
        if word == "--recipe":
            name = next(words, "")
        elif word.startswith("--recipe="):
            name = word.partition("=")[2]
        else:
            rest.append(word)
    return _find(name), rest


def _find(name: str) -> Path:
    """A recipe file by path, or by the name of a shipped one. Raises BadInput for neither."""
    shipped = RECIPES / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise BadInput(f"no recipe {name!r}: give a YAML file or one of {known}")
    return path


def _with_extended(path: Path) -> list[Path]:
    """A recipe file behind those that it extends, the first one first. Raises BadInput for a circle."""
    files = [path]
    while name := _extended(files[0]):
        if (base := _find(name)) in files:
            raise BadInput(f"recipe {path} extends itself, through {name}")
        files.insert(0, base)
    return files


def _extended(path: Path) -> str:
    content = read_recipe_file(path)
    return str(content.get("extends") or "") if isinstance(content, dict) else ""
