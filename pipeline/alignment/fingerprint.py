"""What an aligned dataset is made from: tokenizers, lengths and data, each with a digest of its content.

`Inputs.identity` is everything that determines the rows; its hash is the dataset's key. Settings of training (block size,
batch, objective) are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from pipeline.config.recipe import Maskable, OnBadRow, Recipe, Source, Validation
from pipeline.core.errors import BadInput
from pipeline.core.files import file_sha256, json_sha256
from pipeline.models.model_files import TOKENIZER_FILES, fetch

FORMAT = 2
"""Version of the columns and of what is in them; a new one makes every older dataset stale."""

AnySource = TypeVar("AnySource", Source, Validation)


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer lies, the digest of every tokenizer and template file, and one digest over all."""

    path: str
    sha256: str
    files: dict[str, str]


@dataclass(frozen=True)
class SideInputs:
    """A model's side: its tokenizer and longest row; of a teacher also the ids that it shares with the student."""

    tokenizer: TokenizerFiles
    length: int
    shared_vocab: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.sha256, "length": self.length}

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SideInputs:
        return cls(**{**value, "tokenizer": TokenizerFiles(**value["tokenizer"])})


@dataclass(frozen=True)
class Content:
    """What was found behind a source; `bytes` of a local file."""

    rows: int
    sha256: str
    bytes: int | None
    format: str


@dataclass(frozen=True)
class SourceInputs(Generic[AnySource]):
    """A source or the validation rows, and what was found there (None: not known)."""

    source: AnySource
    content: Content | None

    @property
    def known(self) -> Content:
        """The content. Raises ValueError where it is not known."""
        if self.content is None:
            raise ValueError(f"nothing is known of {self.source.path}")
        return self.content

    @property
    def identity(self) -> dict[str, Any]:
        """What is taken from which content, without path and licence."""
        return {name: value for name, value in self.to_json().items() if name not in ("path", "licence")}

    def to_json(self) -> dict[str, Any]:
        return asdict(self.source) | {"content": self.content and asdict(self.content)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], kind: type[AnySource]) -> SourceInputs[AnySource]:
        fields = {name: field for name, field in value.items() if name != "content"}
        return cls(kind(**fields), Content(**value["content"]))


@dataclass(frozen=True)
class Inputs:
    """All that a dataset is made from."""

    format: int
    student: SideInputs
    teachers: dict[str, SideInputs]
    maskable: Maskable
    on_bad_row: OnBadRow
    sources: tuple[SourceInputs[Source], ...]
    validation: SourceInputs[Validation] | None

    @property
    def data(self) -> tuple[SourceInputs[Source] | SourceInputs[Validation], ...]:
        """Training sources, and the validation rows if there are any."""
        return (*self.sources, self.validation) if self.validation else self.sources

    @property
    def settings(self) -> dict[str, Any]:
        """What determines how a row is aligned, whatever the row."""
        return {
            "format": self.format,
            "student": self.student.identity,
            "teachers": {name: side.identity for name, side in self.teachers.items()},
            "maskable": self.maskable,
            "on_bad_row": self.on_bad_row,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the rows; no paths."""
        sources = {str(n): source.identity for n, source in enumerate(self.sources)}
        return self.settings | {"sources": sources, "validation": self.validation and self.validation.identity}

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "student": self.student.to_json(),
            "teachers": {name: side.to_json() for name, side in self.teachers.items()},
            "maskable": self.maskable,
            "on_bad_row": self.on_bad_row,
            "sources": [source.to_json() for source in self.sources],
            "validation": self.validation and self.validation.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inputs:
        validation = value["validation"]
        return cls(
            format=value["format"],
            student=SideInputs.from_json(value["student"]),
            teachers={name: SideInputs.from_json(side) for name, side in value["teachers"].items()},
            maskable=value["maskable"],
            on_bad_row=value["on_bad_row"],
            sources=tuple(SourceInputs.from_json(source, Source) for source in value["sources"]),
            validation=SourceInputs.from_json(validation, Validation) if validation else None,
        )


def fingerprint_inputs(
    recipe: Recipe, contents: Mapping[str, Content | None], shared_vocab: Mapping[str, int] | None = None
) -> Inputs:
    """What a recipe's dataset is made from. `contents`: what is known of the data behind each `source_key`.

    Raises BadInput for a tokenizer that is not there.
    """
    known = shared_vocab or {}
    data = recipe.data
    return Inputs(
        format=FORMAT,
        student=SideInputs(tokenizer_fingerprint(recipe.student.tokenizer), data.student_length),
        teachers={
            teacher.name: SideInputs(tokenizer_fingerprint(teacher.tokenizer), teacher.length, known.get(teacher.name))
            for teacher in recipe.teachers
        },
        maskable=data.maskable,
        on_bad_row=data.on_bad_row,
        sources=tuple(SourceInputs(source, contents.get(source_key(source))) for source in data.sources),
        validation=(
            SourceInputs(data.validation, contents.get(source_key(data.validation))) if data.validation else None
        ),
    )


def source_key(source: Source | Validation) -> str:
    """Names the rows behind a source or the validation rows."""
    parts = ("path", "config", "split", "format", "holdout", "contains")
    return ":".join(str(getattr(source, part, "")) for part in parts)


def tokenizer_fingerprint(path: str) -> TokenizerFiles:
    """The tokenizer's files in a folder or on the hub. Raises BadInput without any."""
    folder = fetch(path, TOKENIZER_FILES)
    files = {name: file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not files:
        raise BadInput(f"{path}: no tokenizer files; expected {TOKENIZER_FILES[0]}")
    return TokenizerFiles(path, json_sha256(files), files)
