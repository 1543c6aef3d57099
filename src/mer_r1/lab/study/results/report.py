"""Report of a study's folder, and ``docs/study.md`` from the committed results.

`write_report` collects each study's numbers into `report/NAME.json` with `NAME.png` and one `report.md`. `publish`
copies results to ``docs/study/`` and writes their tables between the markers of ``docs/study.md``
(`<!-- study:NAME -->` to `<!-- end -->`).
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import read_object
from mer_r1.errors import UserError
from mer_r1.lab.study.results.claims import decide
from mer_r1.lab.study.results.collect import collect
from mer_r1.lab.study.results.figures import draw
from mer_r1.lab.study.results.tables import tables
from mer_r1.lab.study.runs.jobs import StudyJob
from mer_r1.lab.study.runs.variants import STUDIES

_BLOCK = re.compile(r"(<!-- study:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_report(studies: Mapping[str, str], jobs: Sequence[StudyJob], out: Path) -> Path:
    """Write tables, figures and JSON of the studies with results; returns the path of `report/report.md`.

    Args:
        studies: key of `STUDIES` -> command that repeats the study, kept in the JSON.
        jobs: jobs of their plan.
        out: folder of the study.

    Raises:
        UserError: if none of them has a finished run.
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
        data["claims"] = decide(study, data["numbers"])
        (folder / f"{study}.json").write_text(_json(data), encoding="utf-8")
        draw(data, folder / f"{study}.png")
        parts += [f"## {STUDIES[study].question}", f"![{study}]({study}.png)", block(data)]
    if not parts:
        raise UserError(f"{out}: no run of {', '.join(studies)} is finished")
    page = folder / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def block(data: Mapping[str, Any]) -> str:
    """The tables of a result of `collect.collect` with a footnote on their provenance, in Markdown."""
    return "\n\n".join([*tables(data), _footnote(data)])


def fill_document(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Put the tables of the results (study -> its JSON) between the markers of a page.

    Raises:
        UserError: if a marker names no study.
    """

    def fill(match: re.Match[str]) -> str:
        study = match[2]
        if study not in STUDIES:
            raise UserError(f"marker study:{study}: expected one of {', '.join(STUDIES)}")
        if study not in results:
            return f"{match[1]}No results are committed yet.\n{match[3]}"
        picture = f"![{study}](study/{study}.png)"
        return f"{match[1]}{picture}\n\n{block(results[study])}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder with one `NAME.json` per study: study -> JSON.

    Raises:
        UserError: if a file is not valid JSON or its name is not a study's.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem not in STUDIES:
            raise UserError(f"{path}: expected the name of a study: {', '.join(STUDIES)}")
        found[path.stem] = read_object(path)
    return found


def publish(out: Path, docs: Path) -> list[Path]:
    """Copy a report's results into the documentation and fill its page `study.md`; returns the files written.

    Raises:
        UserError: if `out` has no report, or one of trials, or `docs` has no page.
    """
    page = docs / "study.md"
    found = sorted((out / "report").glob("*.json"))
    if not found or not page.is_file():
        raise UserError(f"expected results in {out / 'report'} (`mer-r1 study report`) and a page {page}")
    for data in read_results(out / "report").values():
        if data["split"] != "test":
            raise UserError(f"{out} holds trials on validation clips; expected results on test clips")
    (docs / "study").mkdir(exist_ok=True)
    sources = (*found, *(path.with_suffix(".png") for path in found))
    written = [shutil.copyfile(source, docs / "study" / source.name) for source in sources]
    text = page.read_text(encoding="utf-8")
    page.write_text(fill_document(text, read_results(docs / "study")), encoding="utf-8")
    return [*written, page]


def _footnote(data: Mapping[str, Any]) -> str:
    kept = data["provenance"]
    changed = " with uncommitted changes" if kept["changed"] else ""
    parts = [
        "95 % t intervals over seeds; differences are paired by seed",
        f"seeds {', '.join(map(str, kept['seeds']))}",
        f"commit {', '.join(commit[:10] for commit in kept['commits'])}{changed}",
        *(", ".join(f"{name} {version}" for name, version in found.items()) for found in kept["versions"]),
        f"base {Path(kept['base']).name}",
        f"{kept['process_hours']:.1f} process hours",
    ]
    if data["missing"]:
        parts.append(f"**{data['missing']} runs are not finished**")
    command = f"\n\nCommand: `{kept['command']}`" if kept.get("command") else ""
    return f"{'; '.join(parts)}.{command}"


def _json(data: Mapping[str, Any]) -> str:
    # One line per seed: a changed number is one changed line in a diff.
    text = json.dumps(data, indent=1, sort_keys=True)
    return re.sub(r"\n {4,}", " ", re.sub(r"\n {3,}[\]}]", lambda found: found[0].strip(), text)) + "\n"
