"""What a study runs: variants of one recipe, each with every seed. A study is a YAML file of `Study`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml

from pipeline.config.cli import DEFAULT, parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput

Settings = Mapping[str, Any]
"""Fields of the recipe by dotted name, as on a stage's command line."""

Variants = dict[str, dict[str, Any]]
"""NAME: fields that this variant sets."""

START = "start"


@dataclass
class Study:
    """Variants of one recipe over seeds."""

    name: str = ""
    """Names the folder, runs/study/NAME; default: the recipe's name."""
    recipe: str = DEFAULT
    """Recipe file or name of a shipped one: what all runs share. Its teachers are also what every student is measured against."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe, set in every run."""
    start: str | dict[str, Any] | None = None
    """Fields of a run that comes first, once per seed: all variants go on from its weights. Or the name of a study whose start
    serves this one too. None: from the recipe's student."""
    start_bar: float = 0.0
    """A start that scores less goes on from its own weights, as long again, until it does not."""
    variants: str | Variants | list[list[Variants]] = field(default_factory=dict)
    """NAME: fields that this variant sets; or a list of products, each a list of such tables, whose every combination is a variant
    (A-B sets the fields of A, then those of B); or a YAML file of either."""
    only: list[str] = field(default_factory=list)
    """Names of the variants to run; default: all."""
    baseline: str = "undistilled"
    """Variant that the others are compared with, seed by seed: A-B with A-BASELINE, where there is one."""
    seeds: str = "0..7"
    """`0..7`, or a list as `0,2,5`: sets data.seed (order, noise, random initial weights)."""
    engine: str = "ds_configs/zero3.json"
    """DeepSpeed engine settings."""
    results: str = ""
    """results.json of this study that was made before, elsewhere maybe: seeds that are complete in it are not run again."""

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.recipe).stem
        self.variants = read_variants(self.variants)
        if unknown := [name for name in self.only if name not in self.variants]:
            raise BadInput(f"only: no variant {', '.join(unknown)}; there are {', '.join(self.variants)}")
        if self.only:
            self.variants = {name: self.variants[name] for name in self.only}
        if not self.variants:
            raise BadInput("the study has no variants: give --study FILE, or --vary FIELD=VALUE,VALUE")
        if wrong := [name for name in self.variants if name == START or not re.fullmatch(r"[\w=.,-]+", name)]:
            raise BadInput(f"variant {wrong[0]!r}: choose a name of letters, digits, _ = . , - other than {START}")

    @property
    def folder(self) -> Path:
        """Where all of the study's runs and its table are."""
        return Path("runs/study") / self.name

    def seed_numbers(self) -> list[int]:
        """The seeds as integers. Raises BadInput for anything but `A..B` and `A,B,C`."""
        if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", self.seeds):
            return list(range(int(bounds[1]), int(bounds[2]) + 1))
        if re.fullmatch(r"\d+(,\d+)*", self.seeds):
            return [int(seed) for seed in self.seeds.split(",")]
        raise BadInput(f"seeds {self.seeds!r}: write 0..7 or 0,2,5")

    def run_dir(self, variant: str, seed: int) -> Path:
        """Run directory of one run."""
        return self.folder / variant / str(seed)

    def start_dir(self, seed: int) -> Path:
        """Run directory of the run whose weights a seed's variants start from."""
        return Path("runs/study") / (self.start if isinstance(self.start, str) else self.name) / START / str(seed)

    @property
    def by_name(self) -> Variants:
        """The variants, as `__post_init__` has read them."""
        return cast(Variants, self.variants)

    def planned(self) -> list[str]:
        """Names of a seed's runs, in order."""
        return [START] * isinstance(self.start, dict) + list(self.by_name)

    @cached_property
    def base(self) -> Recipe:
        """The recipe that all runs share, with every teacher that a variant may name."""
        return self._recipe({"name": self.name}, {"run_dir": str(self.folder / "base")})

    def _fields(self, variant: str) -> dict[str, Any]:
        if variant == START and isinstance(self.start, dict):
            return self.start
        return self.by_name[variant]

    def run(self, variant: str, seed: int, student: str | None = None) -> Recipe:
        """The recipe of one run. Raises BadInput, with the variant's name, for fields that do not fit.

        Args:
            student: folder of the initial weights, where the study has a start.
        """
        base = self.base
        fields = {"data.aligned": base.data.aligned, **self._fields(variant)}
        forced = {
            "name": f"{self.name}-{variant}-{seed}",
            "data.seed": seed,
            "run_dir": str(self.run_dir(variant, seed)),
        }
        if student:
            tokenizer = base.student.tokenizer
            forced |= {"student.path": student, "student.weights": "pretrained", "student.tokenizer": tokenizer}
        try:
            return self._recipe(fields, forced)
        except BadInput as error:
            raise BadInput(f"variant {variant}: {error}") from None

    def _recipe(self, fields: Settings, forced: Settings) -> Recipe:
        words = [word for chosen in (self.settings, fields, forced) for word in _words(chosen)]
        return parse(parser(""), ["--recipe", self.recipe, *words])[0]


def grid(vary: Sequence[str]) -> Variants:
    """Variants of `FIELD=VALUE,VALUE` arguments: the product of all of them, named by their values.

    Raises BadInput for an argument of another form.
    """
    if wrong := [v for v in vary if not re.fullmatch(r"[\w.]+=[^=]+", v)]:
        raise BadInput(f"--vary {wrong[0]!r}: write FIELD=VALUE,VALUE, as objective.strategy=calm,tide_cross")
    choices = [(name, values.split(",")) for name, _, values in (v.partition("=") for v in vary)]
    return product([{value: {name: value} for value in values} for name, values in choices], ",") if vary else {}


def product(tables: Sequence[Variants], between: str = "-") -> Variants:
    """Every combination of an entry of each table, named by theirs; later tables' fields count."""
    return {
        between.join(name for name, _ in chosen): {k: v for _, fields in chosen for k, v in fields.items()}
        for chosen in itertools.product(*(table.items() for table in tables))
    }


def _words(fields: Settings) -> list[str]:
    return [
        word
        for name, value in fields.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def read_variants(given: str | Variants | list[list[Variants]]) -> Variants:
    """The variants, read from their file where a path is given, products made. Raises BadInput where it cannot be read."""
    if isinstance(given, str):
        try:
            variants: Any = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise BadInput(f"variants {given}: {' '.join(str(error).split())}") from None
    else:
        variants = given
    if isinstance(variants, list):
        return {name: fields for tables in variants for name, fields in product(tables).items()}
    return variants
