"""From a study's folder to its report, and from committed results to ``docs/study.md``.

`write_report` collects each study's numbers into `report/NAME.json` with `NAME.png` and one `report.md`. Results that
are worth keeping are copied to ``docs/study/``; `fill_document` then writes their tables between the markers of
``docs/study.md`` (`<!-- study:NAME -->` to `<!-- end -->`) and all claims at its head (`<!-- verdicts -->`), so that no
number there is ever typed by hand. A test fails if the page and the JSON differ.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.lab.study.results.claims import decide
from mer_r1.lab.study.results.collect import collect
from mer_r1.lab.study.results.figures import draw
from mer_r1.lab.study.results.intervals import Verdict
from mer_r1.lab.study.results.tables import shown, table, tables
from mer_r1.lab.study.results.tables import title as question
from mer_r1.lab.study.runs.jobs import Job
from mer_r1.lab.study.runs.variants import STUDIES, split_of

_BLOCK = re.compile(r"(<!-- (?:study:([\w-]+)|verdicts) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_report(studies: Mapping[str, str], jobs: Sequence[Job], out: Path) -> Path:
    """Tables, figures and JSON of the studies that have results; returns `report/report.md` in the study's folder.

    Args:
        studies: keys of `STUDIES`, each with what a reader would type to repeat it, kept in the JSON.
        jobs: of their plan.
        out: folder of the study.

    Raises:
        UserError: none of them has a finished run.
    """
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for study, command in studies.items():
        try:
            data = collect(study, jobs, out)
        except UserError:
            continue
        data["provenance"]["command"] = command
        (folder / f"{study}.json").write_text(_json(data), encoding="utf-8")
        draw(data, folder / f"{study}.png")
        parts += [f"## {question(study)}", f"![{study}]({study}.png)", block(data)]
    if not parts:
        raise UserError(f"{out}: no run of {', '.join(studies)} is finished")
    page = folder / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def block(data: Mapping[str, Any]) -> str:
    """What a page shows of a study: its tables, then what they rest on.

    Args:
        data: from `collect.collect`.
    """
    return "\n\n".join([*tables(data), _footnote(data)])


def fill_document(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the tables of the results between its markers.

    Args:
        text: of the page.
        results: study -> its JSON; a study without results is said to have none.

    Raises:
        UserError: a marker names no study.
    """

    def fill(match: re.Match[str]) -> str:
        study = match[2]
        if study is None:
            return f"{match[1]}{verdicts(results)}\n{match[3]}"
        if study not in STUDIES:
            raise UserError(f"the page asks for the study {study!r}; there are {', '.join(STUDIES)}")
        if study not in results:
            return f"{match[1]}No results are committed yet.\n{match[3]}"
        picture = f"![{study}](study/{study}.png)"
        return f"{match[1]}{picture}\n\n{block(results[study])}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def verdicts(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All claims of all results in one table, those that hold first; what two studies claim stands there once.

    Args:
        results: study -> its JSON.
    """
    found: dict[str, list[str]] = {}
    for study in [study for study in STUDIES if study in results]:
        for row in decide(study, results[study]["numbers"], split_of(results[study])):
            found.setdefault(row["claim"], [row["claim"], shown(row, signed=True), study, f"**{row['verdict']}**"])
    order = [f"**{verdict}**" for verdict in Verdict]
    rows = sorted(found.values(), key=lambda row: order.index(row[-1]))
    return table(["claim", "paired difference", "study", ""], rows)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The committed results: study -> JSON.

    Args:
        folder: with one `NAME.json` a study.

    Raises:
        UserError: a file is no JSON, or of no study.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}") from error
        if path.stem not in STUDIES:
            raise UserError(f"{path}: there is no study of that name, only {', '.join(STUDIES)}")
    return found


def publish(out: Path, docs: Path) -> list[Path]:
    """Copy a report's results into the documentation and fill its page; returns the files written.

    Args:
        out: folder of the study.
        docs: with `study.md`.

    Raises:
        UserError: no report in `out`, or one of trials; no page in `docs`.
    """
    page = docs / "study.md"
    found = sorted((out / "report").glob("*.json"))
    if not found or not page.is_file():
        raise UserError(f"expected results in {out / 'report'} (`mer-r1 study report`) and a page {page}")
    for study, data in read_results(out / "report").items():
        if "test" in STUDIES[study].splits and data["split"] != "test":
            raise UserError(f"{out} holds trials on validation clips; results are those on test clips")
    (docs / "study").mkdir(exist_ok=True)
    written = []
    for source in (*found, *(path.with_suffix(".png") for path in found)):
        target = docs / "study" / source.name
        target.write_bytes(source.read_bytes())
        written.append(target)
    text = page.read_text(encoding="utf-8")
    page.write_text(fill_document(text, read_results(docs / "study")), encoding="utf-8")
    return [*written, page]


def _footnote(data: Mapping[str, Any]) -> str:
    kept = data["provenance"]
    changed = " with uncommitted changes" if kept["changed"] else ""
    of_rl = [settings for settings in kept["settings"] if "method" in settings]
    steps = sorted({settings["max_steps"] for settings in of_rl if "max_steps" in settings}, key=int)
    said = [
        "95 % t intervals over seeds; differences are paired by seed",
        f"seeds {', '.join(map(str, kept['seeds']))}",
        *([f"{' or '.join(steps)} steps of RL"] if steps else []),
        f"commit {', '.join(commit[:10] for commit in kept['commits'])}{changed}",
        *(", ".join(f"{name} {version}" for name, version in found.items()) for found in kept["versions"]),
        *([f"base {kept['base'][:8]}"] if kept.get("base") else []),
        f"{kept['process_hours']:.1f} process hours",
    ]
    if data["missing"]:
        said.append(f"**{data['missing']} runs are not finished**")
    command = f"\n\nCommand: `{kept['command']}`" if kept.get("command") else ""
    return f"{'; '.join(said)}.{command}"


def _json(data: Mapping[str, Any]) -> str:
    # One line a seed: small to keep, and a changed number shows as one changed line.
    text = json.dumps(data, indent=1, sort_keys=True)
    return re.sub(r"\n {4,}", " ", re.sub(r"\n {3,}[\]}]", lambda found: found[0].strip(), text)) + "\n"
