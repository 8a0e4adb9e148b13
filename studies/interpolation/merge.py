"""Methods of an earlier summary beside those of a folder, to go on where its first runs are not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flatbayes.experiments import SummaryRow
from flatbayes.experiments.summary import add_adjusted_p_values

LEVEL = 0.05
RECORDS = {"trials": "method", "rows": "posterior", "law": "method"}
"""Lists of a summary, and the key of the name of the method in their records."""


def merge_settings(earlier: Mapping[str, Any], fresh: Mapping[str, Any], methods: Iterable[str]) -> dict[str, Any]:
    """Summary of a setting with the methods of both; a method of both is that with more seeds.

    Holm's correction is computed again over the comparisons of all methods. Costs are added, or are those of the
    longer summary where a method is in both. The sharpness of MAP belongs to all methods of the same seeds.

    Args:
        earlier: Summary of the setting, perhaps of another folder.
        fresh: Summary of the setting in this folder, which wins between equals.
        methods: Names of all methods in the order of the page.
    """
    if not fresh["rows"]:
        return dict(earlier)
    before, now = count_seeds(earlier), count_seeds(fresh)
    sources = {
        name: earlier if before.get(name, 0) > now.get(name, 0) else fresh
        for name in methods
        if name in before or name in now
    }
    merged = dict(fresh)
    for key, label in RECORDS.items():
        merged[key] = [r for name, source in sources.items() for r in source[key] if r[label] == name]
    base = next((record for record in merged["law"] if record["method"] == "MAP"), None)
    for i, record in enumerate(merged["law"]):
        if base is not None and record["sharpness"] is None and record["seeds"] == base["seeds"]:
            merged["law"][i] = {**record, "sharpness": base["sharpness"]}
    rows = add_adjusted_p_values([SummaryRow.from_dict(row) for row in merged["rows"]])
    merged["rows"], merged["counts"] = [row.to_dict() for row in rows], count_verdicts(rows)
    merged["selected"] = {name: source["selected"][name] for name, source in sources.items()}
    best = "plain_is_best_on_validation"
    merged[best] = [name for name, source in sources.items() if name in source[best]]
    merged["finished"] = sum(2 * max(before.get(name, 0), now.get(name, 0)) for name in sources)
    if before.keys() & now.keys():
        merged["sharing"] = max(fresh, earlier, key=lambda setting: int(setting["finished"]))["sharing"]
    else:
        merged["sharing"] = {key: value + fresh["sharing"][key] for key, value in earlier["sharing"].items()}
    return merged


def count_seeds(setting: Mapping[str, Any]) -> dict[str, int]:
    """Number of pairs of trainings by method."""
    return {row["posterior"]: row["num_seeds"] for row in setting["rows"] if row["metric"] == "nll"}


def count_verdicts(rows: Sequence[SummaryRow]) -> dict[str, dict[str, int]]:
    """Verdicts by the intervals and after Holm's correction, on the usual metrics and on the others."""
    counts = {}
    for family in dict.fromkeys(row.family for row in rows):
        group = [row for row in rows if row.family == family]
        before = Counter(row.verdict for row in group)
        after = Counter(row.verdict for row in group if row.p_holm is not None and row.p_holm < LEVEL)
        counts[str(family) or "usual"] = {
            "comparisons": len(group),
            "flat": before["flat"],
            "plain": before["plain"],
            "flat_holm": after["flat"],
            "plain_holm": after["plain"],
        }
    return counts
