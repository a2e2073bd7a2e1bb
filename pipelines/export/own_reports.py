"""The evaluations of a policy: reports whose digests name its weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.evaluation import YARDSTICKS, EvaluationRow
from pft_core.files import digest, read_json
from pft_core.policies import ModelRef
from pipelines.reporting import REPORT_NAMES, Example

RowsByPlace = Mapping[tuple[str | None, str | None, str], EvaluationRow]  # by axis, pole and metric
BASE_TITLE = "base model"


@dataclass(frozen=True)
class OwnReport:
    """The part of a report about one policy and one data set.

    data: digest of the data. beside: what the report compares it with, the base model and yardsticks, by title.
    """

    place: Path
    data: str
    scoring: str | None
    rows: list[EvaluationRow]
    beside: Mapping[str, RowsByPlace]
    cautions: list[str]
    examples: list[Example]


def own_reports(run_dir: Path, ref: ModelRef, given: Sequence[Path]) -> list[OwnReport]:
    """Return the given reports, or those found beside the run if none is given; those with rows of the base come first.

    Raises UserError if a given one is missing or about another policy.
    """
    reports = [report for place in given for report in _given_reports(place, ref)]
    reports += [report for place in _places_beside(run_dir) for report in _reports_of(place, ref) if not given]
    return sorted(reports, key=lambda report: BASE_TITLE not in report.beside)


def _places_beside(run_dir: Path) -> Iterator[Path]:
    """Yield the reports that the quickstart, and the command that a training suggests, write beside a run."""
    places = [run_dir.parent, *sorted(run_dir.parent.glob("evaluation*/*")), Path(f"{run_dir}-evaluation")]
    yield from (file for place in places if (file := place / REPORT_NAMES[0]).is_file())


def _given_reports(place: Path, ref: ModelRef) -> list[OwnReport]:
    reports = _reports_of(place / REPORT_NAMES[0] if place.is_dir() else place, ref)
    if not reports:
        raise UserError(
            f"--report {place}: not an evaluation of this policy, because its digests name other weights: give the "
            "--output folder of a `pft evaluate` of this run"
        )
    return reports


def _reports_of(file: Path, ref: ModelRef) -> list[OwnReport]:
    """Return what a report says about a policy on each of its data sets; nothing if the report has no rows of it."""
    content = read_json(file, what="the report of an evaluation")
    rows, digests = content.get("rows", []), content.get("digests", {})
    policies = digests.get("policies") or {row.get("policy"): digests for row in rows}
    name = next((name for name, each in policies.items() if _are_digests_of(each, ref)), None)
    own = [row for row in rows if row.get("policy") == name]
    if name is None or not own:
        return []
    # Where a report names the data of no part, that of the policy is the first part's.
    parts = digests.get("parts") or {own[0].get("part"): policies[name].get("data")}
    titles = {other: BASE_TITLE for other, each in policies.items() if not each.get("training_data")}
    titles |= {YARDSTICKS[each].label: YARDSTICKS[each].label for each in YARDSTICKS}
    return [_on_part(content, name, part, place=file, data=str(data), titles=titles) for part, data in parts.items()]


def _on_part(
    content: Mapping[str, Any], name: str, part: str | None, *, place: Path, data: str, titles: Mapping[str, str]
) -> OwnReport:
    """Return what a report says about a policy on one of its data sets. titles: of base and yardsticks."""
    rows = [row for row in content["rows"] if row.get("part") == part]
    return OwnReport(
        place,
        data,
        content.get("config", {}).get("scoring"),
        [row for row in rows if row.get("policy") == name],
        _by_title([row for row in rows if row["policy"] != name and row["policy"] in titles], titles),
        [caution for caution in content.get("cautions", []) if caution.startswith(f"{name} ")],
        content.get("examples", []),
    )


def _by_title(rows: Sequence[EvaluationRow], titles: Mapping[str, str]) -> dict[str, RowsByPlace]:
    beside: dict[str, dict[tuple[str | None, str | None, str], EvaluationRow]] = {}
    for row in rows:
        beside.setdefault(titles[row["policy"]], {})[row["axis"], row["pole"], row["metric"]] = row
    return dict(beside)


def _are_digests_of(digests: Mapping[str, Any], ref: ModelRef) -> bool:
    """Return whether a report's digests name a policy: its adapter's files, or the config and data of its training."""
    if ref.adapter is not None:
        is_config = digests.get("adapter_config_sha256") in (None, ref.adapter_config_sha256)
        return ref.adapter_sha256 is not None and digests.get("adapter_sha256") == ref.adapter_sha256 and is_config
    trained = (digest(ref.config_digest), ref.data_digest)
    return digests.get("adapter_sha256") is None and (digests.get("model"), digests.get("training_data")) == trained
