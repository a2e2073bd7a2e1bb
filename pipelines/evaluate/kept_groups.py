"""Answers of finished groups, kept until the report is written, so that a killed evaluation goes on from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pft_core.files import digest, read_checked_lines, remove_folder, write_checked_lines
from pft_core.policies import ModelRef, base_digest
from pipelines.evaluate.answering_actors import answers_table
from pipelines.evaluate.evaluate_config import GROUPS_NAME, EvaluateConfig, request_of

ANSWER_KEYS = ["outcome", "reject"]


@dataclass(frozen=True)
class KeptGroups:
    """The finished groups of an evaluation, in a folder of its output. request: a digest of all that decides answers.

    A file is named by a digest of the request and of the group's items, so that no other request finds it.
    """

    folder: Path
    request: str

    @staticmethod
    def of(config: EvaluateConfig, ref: ModelRef, digests: Mapping[str, str | None]) -> "KeptGroups":
        """Return the groups of a request. digests: those of the report: of model, data, template and code."""
        weights = base_digest(ref.weights) if ref.weights else None  # two trainings of one config may end differently
        return KeptGroups(Path(config.output) / GROUPS_NAME, digest([request_of(config), digests, weights]))

    def read(self, group: pa.Table) -> pa.Table | None:
        """Return the answers to a group of items; None if it is not finished, or if its file is damaged."""
        lines = read_checked_lines(self._file(group))
        if lines is None or len(lines) != group.num_rows:
            return None
        return answers_table(list(map(json.loads, lines)), group["place"][0].as_py(), group["job"][0].as_py())

    def keep(self, group: pa.Table, answers: pa.Table) -> None:
        """Keep the answers to a group, unless a fault stopped it or every item was rejected."""
        rows = answers.select(ANSWER_KEYS).to_pylist()
        if len(rows) == group.num_rows and any(row["outcome"] for row in rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_checked_lines(self._file(group), [json.dumps(without_nulls(row)) for row in rows])

    def _file(self, group: pa.Table) -> Path:
        return self.folder / f"{digest([self.request, group.drop_columns(['job']).to_pylist()])}.jsonl"


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def forget_groups(config: EvaluateConfig) -> None:
    """Delete the finished groups of an evaluation, whose report holds their answers."""
    if (folder := Path(config.output) / GROUPS_NAME).is_dir():
        remove_folder(folder)
