"""Writes the numbers and figures of docs/evidence.md from the committed results of the studies.

`python -m demo.study.evidence`: reads demo/study/results/*.json, fills what stands between the document's
`<!-- NAME -->` and `<!-- end -->` marks, and plots docs/evidence/*.svg.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from demo.problems import carries
from demo.study import evidence_figures as figures
from demo.study.make_data import FILES, rows_of
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json, write_text
from pipeline.evaluation.statistics import holm, sign_flip
from pipeline.experiments.grid import START
from pipeline.experiments.results import Results, by_t, cells, lines, markdown, t_interval

ROOT = Path(__file__).resolve().parents[2]
BASELINES = {"A-calm": ("A-tide_cross", "A-tide_shared"), "B-kl": ("B-tide_shared", "B-tide_cross")}
WHOLES = {
    "B-tide_shared": ("B-tide_shared-no_timestep", "B-tide_shared-no_training", "B-tide_shared-no_compdemo"),
    "A-tide_cross": ("A-tide_cross-tidal_ce", "A-reverse_kl_calm", "A-tide_cross-chunk_masks", "both-tide_cross"),
}
# Averages over eight benchmarks: the undistilled student, Table 1 (A), Table 2 (B)
PAPER = {
    "undistilled": 32.67,
    "A-calm": 32.25, "A-tide_shared": 33.83, "A-tide_cross": 34.20,
    "B-kl": 30.55, "B-tide_shared": 33.55, "B-tide_cross": 30.79,
}  # fmt: skip
UNRELIABLE = {
    "undistilled": "carry-undistilled",
    "A-calm": "carry-moe_{0}-calm", "A-tide_shared": "carry-moe_{0}-calm_tidal_compdemo", "A-tide_cross": "carry-moe_{0}-reverse_calm",
    "B-kl": "carry-dense_{0}-kl", "B-tide_shared": "carry-dense_{0}-tidal_compdemo", "B-tide_cross": "carry-dense_{0}-reverse_kl",
}  # fmt: skip
"""The same variants in the reliability study, by dial of their teacher."""
DIALS = {"t30": "trained up to t = 0.3", "full": "read as published"}
STRONG = 0.9
RESULTS, DOCUMENT, FIGURES = ROOT / "demo/study/results", ROOT / "docs/evidence.md", ROOT / "docs/evidence"
RELIABILITY = ROOT / "demo/study/reliability/results.json"


def main() -> None:
    """Renders the document and plots the figures."""
    studies, document = read_studies(), DOCUMENT.read_text(encoding="utf-8")
    write_text(DOCUMENT, render(document, studies))
    FIGURES.mkdir(exist_ok=True)
    first = next(iter(studies.values()))
    figures.probe(first.probe, FIGURES / "probe.svg")
    figures.gradients(FIGURES / "gradients.svg")
    figures.tidal(FIGURES / "lambda.svg")
    for path in map(FIGURES.joinpath, re.findall(r"\(evidence/([a-z]+-\w+\.svg)\)", document)):
        kind, _, name = path.stem.partition("-")
        plot = {"scores": figures.scores, "starts": figures.starts, "kl": figures.teacher_kl}[kind]
        plot(studies[name].start(), studies[name].compared(), path)


def read_studies() -> dict[str, Results]:
    """The committed results, by name of the study."""
    studies = {path.stem: Results.from_json(read_json(path)) for path in sorted(RESULTS.glob("*.json"))}
    if not studies:
        raise BadInput(f"no results in {RESULTS}: run the study first (make study)")
    return studies


def render(document: str, studies: Mapping[str, Results]) -> str:
    """The document with every marked block made anew. Raises BadInput for a mark that no results belong to."""
    blocks = {name: table(study) for name, study in studies.items()}
    blocks |= {f"{name} order": apart(study, BASELINES) for name, study in studies.items()}
    blocks |= {f"{name} parts": apart(study, WHOLES) for name, study in studies.items()}
    blocks |= {
        f"{name} gain": apart(study, {START: [line.variant for line in study.compared()]})
        for name, study in studies.items()
    }
    blocks |= {f"{name} kl": markdown(*by_t([study.start(), *study.compared()])) for name, study in studies.items()}
    blocks |= {f"{name} problems": problems(study) for name, study in studies.items()}
    if not (reliability := read_json(RELIABILITY)):
        raise BadInput(f"no {RELIABILITY}: run the study first (make study STUDY='2 reliability')")
    blocks["paper"] = beside_paper(studies, Results.from_json(reliability))
    blocks |= {f"{name} runs": provenance(study) for name, study in studies.items()}
    return fill(document, blocks, RESULTS)


def fill(document: str, blocks: Mapping[str, str], results: Path) -> str:
    """The document with what stands between `<!-- NAME -->` and `<!-- end -->` made anew. Raises BadInput for an unknown name."""

    def block(match: re.Match[str]) -> str:
        if match[1] not in blocks:
            raise BadInput(f"no results for the mark {match[1]!r} in {results}")
        return f"<!-- {match[1]} -->\n{blocks[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ([\w -]+) -->\n.*?<!-- end -->", block, document, flags=re.DOTALL)


def table(study: Results) -> str:
    """The study's table in Markdown, the start above the variants."""
    header, rows = cells([study.start(), *study.compared()], study.study["baseline"])
    return markdown(header, rows)


def beside_paper(studies: Mapping[str, Results], reliability: Results) -> str:
    """The rows of the paper's Tables 1 and 2: its averages, and the mean score of each study here, in percent."""
    cell = {line.variant: line.mean for line in lines(reliability.runs, "undistilled")}
    unreliable = [{name: cell[variant.format(dial)] for name, variant in UNRELIABLE.items()} for dial in DIALS]
    reliable = [{line.variant: line.mean for line in study.compared()} for study in studies.values()]
    rows = [
        [variant, f"{paper:.2f}", *(f"{100 * of[variant]:.1f}" for of in (*unreliable, *reliable))]
        for variant, paper in PAPER.items()
    ]
    return markdown(["variant", "paper", *DIALS.values(), *(f"`{name}`" for name in studies)], rows)


def apart(study: Results, references: Mapping[str, Sequence[str]]) -> str:
    """Variants minus another variant, paired by seed, also apart for seeds with a strong start and a weak one.

    Holm's correction over the rows of the table.
    """
    began = study.start().scores
    scores = {line.variant: line.scores for line in study.compared()} | {START: began}
    pairs = [
        (ours, other) for other, variants in references.items() for ours in variants if {ours, other} <= scores.keys()
    ]
    moved = [{seed: scores[ours][seed] - scores[other][seed] for seed in scores[other]} for ours, other in pairs]
    p = [sign_flip(list(d.values())) for d in moved]
    strong = [seed for seed, score in began.items() if score >= STRONG]
    weak = [seed for seed in began if seed not in strong]
    header = ["variant", "minus", "difference", "95% interval", "p", "p (Holm)"]
    header += [f"start at least {STRONG} (n = {len(strong)})", f"below (n = {len(weak)})"]
    rows = [
        [
            *pair,
            f"{mean(d.values()):+.3f}",
            "{:+.3f} to {:+.3f}".format(*t_interval(list(d.values()))),
            f"{raw:.4f}",
            f"{adjusted:.4f}",
            *(f"{mean(d[seed] for seed in seeds):+.3f}" if seeds else "" for seeds in (strong, weak)),
        ]
        for pair, d, raw, adjusted in zip(pairs, moved, p, holm(p), strict=True)
    ]
    return markdown(header, rows)


def problems(study: Results) -> str:
    """Share of right answers among the test problems in which the carry could be lost, and among the others."""
    can = np.array([carries(row) for row in rows_of(**FILES["test"])])
    by_variant: dict[str, list[np.ndarray]] = {}
    for run in study.runs:
        right = np.array([x == "1" for x in run.tasks["study_arithmetic"].correct])
        by_variant.setdefault(run.variant, []).append(right)
    rows = [
        [variant, f"{np.mean([r[can] for r in runs]):.3f}", f"{np.mean([r[~can] for r in runs]):.3f}"]
        for variant, runs in by_variant.items()
    ]
    return markdown(["variant", f"carry can be lost (n = {can.sum()})", f"others (n = {(~can).sum()})"], rows)


def provenance(study: Results) -> str:
    """Where the numbers come from: runs, seeds, commit, versions, machine."""
    runs, seeds = study.runs, study.study["seeds"]
    spent = sum(run.wall_seconds for run in runs) / 3600
    where = [
        f"commit {e['commit'][:12]}, torch {e['versions']['torch']}, DeepSpeed {e['versions']['deepspeed']}, "
        f"transformers {e['versions']['transformers']}, Python {e['versions']['python']}, {e['device']}"
        for e in study.environments
    ]
    scores = ", ".join(f"{name} {s.score:.3f}" for name, s in study.teachers.items())
    n = next(iter(runs[0].tasks.values())).n
    return (
        f"{len(runs)} runs, seeds {seeds}, {spent:.1f} hours in all, one process each; {n} test problems; the teachers score "
        f"{scores}.\n{'; '.join(where)}."
    )


if __name__ == "__main__":
    sys.exit(exit_code("evidence", main))
