"""A study's command line, for the stage and for the scripts that take the same words."""

from __future__ import annotations

import argparse

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from pipeline.config.cli import add_verbosity, apply_verbosity
from pipeline.core.errors import BadInput
from pipeline.core.version import add_version
from pipeline.experiments.grid import Study, grid, read_variants


def parse_study(argv: list[str], description: str | None = None) -> tuple[Study, Namespace]:
    """The study and the flags. Raises BadInput for what is unknown or of the wrong type."""
    p = ArgumentParser(
        exit_on_error=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--study", action="config", help="study file: the fields below")
    p.add_class_arguments(Study)
    p.add_argument("--vary", nargs="*", default=[], help="FIELD=VALUE,VALUE: variants; of several: their product")
    p.add_argument(
        "--workers", type=PositiveInt, default=2, help="runs at the same time, each on its part of the cores"
    )
    p.add_argument("--shard", default="", help="i/n: every n-th seed from i on (default: a Slurm array's task, or all)")
    add_verbosity(p)
    add_version(p)
    p.add_argument("--table", action="store_true", help="run nothing: print the table of what is done")
    try:
        flags = p.parse_args(argv)
        fields = {name: getattr(flags, name) for name in Study.__dataclass_fields__}
    except (ArgumentError, yaml.YAMLError) as error:
        raise BadInput(f"{' '.join(str(error).split())} (--help explains every field)") from None
    apply_verbosity(flags)
    if varied := grid(flags.vary):
        known = read_variants(fields["variants"]) or {fields["baseline"]: {"teachers": []}}
        fields["variants"] = {**known, **varied}
    return Study(**fields), flags
