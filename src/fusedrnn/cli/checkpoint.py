"""The file that a training run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedrnn import files
from fusedrnn.cli.charlm import Config, check_shapes, read_fields
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.text import Vocabulary
from fusedrnn.files import below, reason

CHECKPOINT_FILE = "fusedrnn training checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, read but not yet applied."""

    path: Path
    config: Config
    settings: Settings
    source: str | None
    fingerprint: str
    vocabulary: Vocabulary
    tensors: files.Tensors
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileError: no such file, another kind of file, or a damaged one.
            CliError: its contents do not fit together.
        """
        tensors, content = files.load(path, CHECKPOINT_FILE)
        try:
            config = read_fields(Config, content["config"])
            settings = read_fields(Settings, content["settings"])
            source, sha256 = content["text"]["source"], content["text"]["sha256"]
            if not isinstance(source, str | None) or not isinstance(sha256, str):
                raise ValueError(f"text: expected a path and a checksum, got {source!r} and {sha256!r}")
            vocabulary = Vocabulary(content["vocabulary"])
            check_shapes(config, len(vocabulary), below("model", tensors))
            if best := below("best", tensors):
                check_shapes(config, len(vocabulary), best)
        except (LookupError, TypeError, ValueError) as error:
            raise CliError(f"{path}: not a usable checkpoint: {reason(error)}") from None
        return cls(path, config, settings, source, sha256, vocabulary, tensors, content)
