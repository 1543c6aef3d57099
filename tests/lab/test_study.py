"""The study as data, its runs, their cache and resumption, intervals and verdicts, tables and the page."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record, append_record
from mer_r1.lab.study.results import intervals
from mer_r1.lab.study.results.claims import CLAIMS, decide
from mer_r1.lab.study.results.collect import collect, cost, score_splits, theory
from mer_r1.lab.study.results.intervals import ClaimVerdict, estimate, paired, t_quantile, verdict
from mer_r1.lab.study.results.report import fill_document, publish, read_results, write_report
from mer_r1.lab.study.runs.jobs import Options, StudyJob, plan, settings_of
from mer_r1.lab.study.runs.schedule import DONE_FILE, is_done, run_jobs
from mer_r1.lab.study.runs.session import keep_session, read_session, to_options
from mer_r1.lab.study.runs.variants import READING, STUDIES, VARIANTS, chosen_studies
from mer_r1.rl.method import Method

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"


# --- the studies as data ----------------------------------------------------------------------------------------------


def test_every_variant_is_a_method_that_exists() -> None:
    for variant in VARIANTS.values():
        told = (variant.rl or {}).items()
        choices = {key: value for key, value in told if key != "max_completion_length"}
        read = {key: yaml.safe_load(value) for key, value in {**READING, **choices}.items()}
        assert Method(**read).calibration == "difference"
    told = [json.dumps([variant.rl, variant.sft], sort_keys=True) for variant in VARIANTS.values()]
    assert len(set(told)) == len(told)  # no two variants are the same run


def test_every_claim_stands_in_a_study_that_makes_its_runs() -> None:
    for claim in CLAIMS:
        study = STUDIES[claim.study]
        assert {claim.first.split("/")[0], claim.second.split("/")[0]} <= set(study.variants), claim
        assert "test" in study.splits


def test_calibration_brings_its_sweep_along() -> None:
    assert chosen_studies("calibration") == ["calibration", "alpha"]
    assert [name for name in STUDIES if name not in chosen_studies("all")] == ["anchors"]


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    for name in ("train", "exam"):
        (tmp_path / f"{name}.jsonl").write_text(name, encoding="utf-8")
    return Options(tmp_path / "out", TINY, 2, tmp_path / "train.jsonl", tmp_path / "base", tmp_path / "exam.jsonl")


def kinds(jobs: list[StudyJob]) -> list[tuple[str, str | None, int | None, str | None]]:
    facts = [job.facts for job in jobs]
    return [(f["kind"], f.get("variant"), f.get("seed"), f.get("split")) for f in facts]


def test_runs_of_all_studies_are_made_once_and_needs_come_first(options: Options) -> None:
    jobs = plan(list(STUDIES), options)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(job.name) for job in jobs for need in job.needs)
    cold = [name for name, variant in VARIANTS.items() if variant.rl is None]
    assert sum(job.facts["kind"] == "rl" for job in jobs) == 2 * (len(VARIANTS) - len(cold))
    starts = [(job.facts["variant"], job.facts["seed"]) for job in jobs if job.facts["kind"] == "sft"]
    assert sorted(starts) == sorted((name, seed) for name in cold for seed in (0, 1))
    for studies in (["parts"], ["baselines"], ["theory"]):
        assert {job.name for job in plan(studies, options)} <= set(names)


def test_a_seed_shares_its_cold_start_between_variants(options: Options) -> None:
    runs = [job for job in plan(["parts"], options) if job.facts["kind"] == "rl"]
    starts = {job.facts["seed"]: {j.needs for j in runs if j.facts["seed"] == job.facts["seed"]} for job in runs}
    assert all(len(found) == 1 for found in starts.values())
    assert starts[0] != starts[1]
    for job in runs:
        assert f"seed={job.facts['seed']}" in job.arguments


def test_what_only_serves_to_choose_never_sees_test_clips(options: Options) -> None:
    def asked(*studies: str) -> set[tuple[str | None, str | None]]:
        return {(variant, split) for kind, variant, _, split in kinds(plan(studies, options)) if kind == "evaluate"}

    assert asked("theory") == set()
    assert asked("alpha") == {(variant, "val") for variant in STUDIES["alpha"].variants}
    calibration = {(variant, "test") for variant in STUDIES["calibration"].variants}
    assert asked("calibration") == calibration
    assert asked("calibration", "alpha") == calibration | asked("alpha")
    assert asked("auto") == {(variant, split) for variant in STUDIES["auto"].variants for split in ("val", "test")}


def test_a_trial_asks_about_validation_clips_only(options: Options) -> None:
    jobs = plan(["parts", "theory"], replace(options, trial=True))
    assert {job.facts["split"] for job in jobs if job.facts["kind"] == "evaluate"} == {"val"}
    assert {job.name for job in jobs if job.facts["kind"] == "rl"} == {
        job.name for job in plan(["parts", "theory"], options) if job.facts["kind"] == "rl"
    }
    with pytest.raises(UserError, match="--trial: study 'auto' chooses on validation clips and judges on test clips"):
        plan(["auto"], replace(options, trial=True))


def test_the_name_changes_with_whatever_decides_a_run(options: Options, tmp_path: Path) -> None:
    def of_f1(changed: Options) -> str:
        return next(job.name for job in plan(["paradox"], changed) if job.facts.get("variant") == "f1")

    first = of_f1(options)
    assert of_f1(options) == first
    assert of_f1(replace(options, settings=("max_steps=8",))) != first
    assert of_f1(replace(options, sft_settings=("num_train_epochs=1",))) != first
    assert of_f1(replace(options, settings=("alpha=0.3",))) == first  # F1-GRPO does not read it
    recipe = tmp_path / "other.yaml"
    recipe.write_text(TINY.read_text(encoding="utf-8").replace("beta: 0.04", "beta: 0.05"), encoding="utf-8")
    assert of_f1(replace(options, recipe=recipe)) != first
    (tmp_path / "base" / "model.safetensors").write_bytes(b"other weights")
    assert of_f1(options) != first


def test_settings_for_all_do_not_undo_a_variant(options: Options) -> None:
    changed = replace(options, settings=("alpha=0.3", "max_steps=8"))
    found = settings_of(VARIANTS["alpha-1.0"], changed)
    assert found == {**READING, "max_steps": "8", "alpha": "1.0", "method": "mer-r1"}
    assert settings_of(VARIANTS["mer-r1"], changed)["alpha"] == "0.3"
    assert settings_of(VARIANTS["ad"], changed) == {"max_steps": "8", "method": "ad"}
    with pytest.raises(UserError, match="key=value"):
        plan(["parts"], replace(options, settings=("alpha",)))


# --- the schedule -----------------------------------------------------------------------------------------------------


def script(name: str, code: str, *needs: str, **facts: Any) -> StudyJob:
    return StudyJob(name, "timeit", ("-n", "1", "-r", "1", code), needs, {"kind": "test", **facts})


def test_jobs_run_once_in_order_and_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write('{{}} ')"
    jobs = [
        script("a", write.format("a")),
        script("b", write.format("b"), "a"),
        script("bad", "raise SystemExit('mer-r1: no such thing')"),
        script("after", write.format("after"), "bad"),
    ]
    with pytest.raises(UserError, match=r"1 runs failed; the first, bad: .*no such thing"):
        run_jobs(jobs, tmp_path, 2)
    assert log.read_text(encoding="utf-8").split() == ["a", "b"]
    kept = json.loads((tmp_path / "a" / DONE_FILE).read_text(encoding="utf-8"))
    assert kept["command"].startswith("python -m timeit")
    assert {"commit", "versions", "seconds", "changed"} <= kept.keys()
    jobs[2] = script("bad", "pass")
    run_jobs(jobs, tmp_path, 1)
    assert log.read_text(encoding="utf-8").split() == ["a", "b", "after"]


def program_of(job: StudyJob, out: Path) -> subprocess.Popen[bytes]:
    """A process that runs one job."""
    program = (
        "import sys; from pathlib import Path; from mer_r1.lab.study.runs.jobs import StudyJob; "
        "from mer_r1.lab.study.runs.schedule import run_jobs; "
        f"job = StudyJob({job.name!r}, 'timeit', {job.arguments!r}, (), {{'kind': 'test'}}); "
        f"run_jobs([job], Path({str(out)!r}), 1)"
    )
    return subprocess.Popen([sys.executable, "-c", program])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_kill_ends_what_runs(tmp_path: Path) -> None:
    note = f"import os; open({str(tmp_path / 'partial')!r}, 'w').write(str(os.getpid())); "
    job = script(
        "slow",
        note + f"os.rename({str(tmp_path / 'partial')!r}, {str(tmp_path / 'pid')!r}); __import__('time').sleep(600)",
    )
    parent = program_of(job, tmp_path)
    wait_for(tmp_path / "pid")
    parent.terminate()
    assert parent.wait() == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text(encoding="utf-8")), 0)
    assert not is_done(tmp_path, job)


def test_after_kill_9_an_orphan_keeps_its_run_and_a_second_study_waits_for_it(tmp_path: Path) -> None:
    # The orphan notes when it ends; the second study starts the same job, and must not before that.
    code = "import time; open('{0}', 'a').write('in '); time.sleep(1.5); open('{0}', 'a').write('out ')"
    job = script("slow", code.format(tmp_path / "log"))
    parent = program_of(job, tmp_path)
    wait_for(tmp_path / "log")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not is_done(tmp_path, job)
    run_jobs([job], tmp_path, 1)
    assert is_done(tmp_path, job)
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["in", "out", "in", "out"]


def test_a_folder_keeps_its_recipe_and_its_scenes(tmp_path: Path) -> None:
    out = tmp_path / "study"
    told = {"seeds": 2, "clips": "40,8,8", "scenes": None, "exam": None, "base": None, "recipe": TINY}
    keep_session("paradox", out, told, "mer-r1 study paradox")
    assert to_options(out, {**told, "recipe": None}).recipe == out / "recipe.yaml"
    keep_session("theory", out, {**told, "recipe": None}, "mer-r1 study theory")
    studies, jobs = read_session(out)
    own = {"paradox": "mer-r1 study paradox", "theory": "mer-r1 study theory"}
    assert list(studies.items()) == list(own.items())
    assert [job.facts["kind"] for job in jobs[:4]] == ["scenes", "scenes", "base", "features"]
    # Of a study that was asked for by its name too, that is the shorter way to its table.
    keep_session("all", out, {**told, "recipe": None}, "mer-r1 study all")
    studies, _ = read_session(out)
    assert studies == {**dict.fromkeys(chosen_studies("all"), "mer-r1 study all"), **own}
    assert list(studies) == chosen_studies("all")
    with pytest.raises(UserError, match=r"other settings \(trial: None, now True\); choose another --out"):
        keep_session("parts", out, {**told, "recipe": None, "trial": True}, "")
    with pytest.raises(UserError, match=r"other settings \(clips: '.*', now '1,1,1'\); choose another --out"):
        keep_session("auto", out, {**told, "clips": "1,1,1"}, "")
    changed = tmp_path / "changed.yaml"
    changed.write_text("common: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="differs"):
        keep_session("auto", out, {**told, "recipe": changed}, "")
    with pytest.raises(UserError, match="not a study's folder"):
        read_session(tmp_path / "nowhere")
    with pytest.raises(UserError, match="TRAIN,VAL,TEST"):
        to_options(out, {**told, "clips": "3600"})


# --- intervals --------------------------------------------------------------------------------------------------------


def test_t_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 31), 31, 40, 60, 120, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)


def test_interval_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t(2) 4.303, half width 4.303 / sqrt(3).
    found = paired({"0": 2.0, "1": 4.0, "2": 6.0, "3": 9.0}, {"0": 1.0, "1": 2.0, "2": 3.0})
    assert found["n"] == 3
    assert found["mean"] == 2.0
    assert found["high"] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-5)
    assert estimate([None, 0.5, float("nan")]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert estimate([])["mean"] is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.floats(-3, 3))
def test_intervals_move_with_their_values(values: list[float], shift: float) -> None:
    found, moved = estimate(values), estimate([value + shift for value in values])
    assert found["low"] <= found["mean"] <= found["high"]
    assert moved["low"] == pytest.approx(found["low"] + shift, abs=1e-5)


def test_verdicts_need_the_whole_interval() -> None:
    def over(low: float, high: float) -> intervals.Estimate:
        return {"mean": (low + high) / 2, "low": low, "high": high, "n": 8}

    assert verdict(over(0.1, 0.3)) is ClaimVerdict.HOLDS
    assert verdict(over(-0.3, -0.1)) is ClaimVerdict.FAILS
    assert verdict(over(-0.1, 0.3)) is ClaimVerdict.UNDECIDED
    assert verdict(over(0.0, 0.0)) is ClaimVerdict.UNDECIDED
    assert verdict(over(0.1, 0.3), sign=-1) is ClaimVerdict.FAILS
    assert verdict(over(-0.3, -0.1), sign=-1) is ClaimVerdict.HOLDS
    assert verdict(estimate([0.3])) is ClaimVerdict.UNDECIDED


# --- numbers, tables, page --------------------------------------------------------------------------------------------


def test_cost_of_a_log_by_hand() -> None:
    log = [
        {"step": 5, "loss": 0.1, "seconds/sampling": 2.0, "completions/mean_length": 40.0, "num_tokens": 100.0},
        {"step": 8, "loss": 0.1, "seconds/sampling": 1.0, "completions/mean_length": 48.0, "num_tokens": 190.0},
        {"step": 8, "train_runtime": 30.0},
    ]
    found = cost(log)
    assert (found["steps"], found["seconds"], found["tokens_read"]) == (8, 30.0, 190.0)
    assert found["seconds_sampling"] == 5 * 2.0 + 3 * 1.0
    assert found["completion_tokens"] == (5 * 40 + 3 * 48) / 8
    assert found["seconds_scoring"] is None
    assert theory(log) == {}


def fake_records(seed: int, better: str) -> dict[str, list[Record]]:
    rows: dict[str, list[Record]] = {"val": [], "test": []}
    for split, kept in rows.items():
        for index in range(12):
            for mode in ("slow", "fast"):
                right = mode == better or (index + seed) % 3 == 0
                word = "happy" if right else "sad"
                kept.append(
                    Record(
                        id=f"{split}-{index}",
                        mode=mode,
                        completion=f"<think></think><answer> {word} </answer>",
                        labels=[word],
                        gold=["happy"],
                        scores=dict.fromkeys(("precision", "recall", "f1"), float(right)),
                        sureness=0.9 if right else 0.2,
                        tokens=50 if mode == "slow" else 6,
                        well_formed=True,
                    )
                )
    return rows


def test_the_threshold_comes_from_validation_clips() -> None:
    rows = fake_records(0, "slow")
    found = score_splits(rows)
    assert found["test"]["slow"]["f1"] == 1.0
    assert found["auto"]["auto"] == {"threshold": 0.9, "share": 0.6667, "f1": 1.0, "tokens": 39.3333}
    unsure = [replace(record, sureness=0.5) for record in rows["test"]]
    assert score_splits({**rows, "test": unsure})["auto"]["threshold"] == found["auto"]["threshold"]
    assert "auto" not in score_splits({"val": rows["val"]})


LOG = [
    {"step": 5, "loss": 0.1, "seconds/sampling": 1.0, "completions/mean_length": 40.0, "num_tokens": 10.0},
    {"step": 5, "train_runtime": 9.0},
]
INTERFERENCE = {"sigma_recall": 0.3, "sigma_precision": 0.1, "rho": 0.5, "predicted_recall": 0.8}
INTERFERENCE |= {"predicted_precision": 0.3, "measured_recall": 0.8, "measured_precision": 0.3}
GEOMETRY = {
    f"cos_{pair}": 0.5 for pair in ("recall_precision", "rd_recall", "rd_precision", "ad_recall", "ad_precision")
}


def finish(out: Path, jobs: list[StudyJob]) -> None:
    """Write the files of finished runs, with synthetic records."""
    for job in jobs:
        folder = out / job.name
        folder.mkdir(parents=True, exist_ok=True)
        done = {**job.facts, "seconds": 3.0, "commit": "c0ffee", "changed": False, "versions": {"torch": "2"}}
        (folder / DONE_FILE).write_text(json.dumps(done), encoding="utf-8")
        if job.facts["kind"] in ("sft", "rl"):
            line = {**LOG[0], **{f"interference/{name}": value for name, value in INTERFERENCE.items()}}
            text = "".join(json.dumps(entry) + "\n" for entry in (line, LOG[1]))
            (folder / "log.jsonl").write_text(text, encoding="utf-8")
        if job.facts["kind"] == "evaluate":
            rows = fake_records(job.facts["seed"], "fast" if job.facts["variant"] in ("sft", "f1") else "slow")
            with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
                for record in rows[job.facts["split"]]:
                    append_record(file, record)
        if job.facts["kind"] == "gradients":
            entry = [{"model": "model", "step": None, **GEOMETRY}]
            (folder / "gradients.json").write_text(json.dumps(entry), encoding="utf-8")


def test_from_runs_to_the_page(options: Options, tmp_path: Path) -> None:
    jobs = plan(list(STUDIES), options)
    finish(options.out, jobs)
    commands = {name: f"mer-r1 study {name}" for name in STUDIES}
    page = write_report(commands, jobs, options.out).read_text(encoding="utf-8")
    assert all(f"Command: `{command}`" in page for command in commands.values())
    assert "commit c0ffee" in page
    results = read_results(options.out / "report")
    assert set(results) == set(STUDIES)
    assert all((options.out / "report" / f"{name}.png").stat().st_size > 2000 for name in STUDIES)
    parts = {row["claim"]: row for row in decide("parts", results["parts"]["numbers"])}
    # Made up so that MER-R1 is always right when slow and F1-GRPO in a third of the clips.
    assert parts["MER-R1 ≥ F1-GRPO in slow F1"]["mean"] == pytest.approx(2 / 3, abs=1e-3)
    docs = tmp_path / "docs"
    docs.mkdir()
    page = "# Study\n\n<!-- study:parts -->\nstale words\n<!-- end -->\n\nbelow\n"
    (docs / "study.md").write_text(page, encoding="utf-8")
    publish(options.out, docs)
    text = (docs / "study.md").read_text(encoding="utf-8")
    assert "stale words" not in text
    assert text.endswith("below\n")
    assert "| MER-R1 | slow | 1.000" in text
    assert fill_document(text, read_results(docs / "study")) == text  # filling again changes nothing


def test_trials_are_reported_but_never_published(options: Options, tmp_path: Path) -> None:
    jobs = plan(["parts"], replace(options, trial=True))
    finish(options.out, jobs)
    page = write_report({"parts": ""}, jobs, options.out).read_text(encoding="utf-8")
    (data,) = read_results(options.out / "report").values()
    assert data["split"] == "val"
    decided = {row["claim"]: row for row in decide("parts", data["numbers"], "val")}
    assert decided["MER-R1 ≥ F1-GRPO in slow F1"]["mean"] == pytest.approx(2 / 3, abs=1e-3)
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if " | slow | " in line]
    assert rows == ["SFT", "F1-GRPO", "+ RD", "+ RD + AD", "MER-R1"]  # in the order of the study
    (tmp_path / "study.md").write_text("<!-- study:parts -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds trials"):
        publish(options.out, tmp_path)


def test_unfinished_runs_are_counted_and_left_out(options: Options) -> None:
    jobs = plan(["paradox"], options)
    with pytest.raises(UserError, match="finished"):
        collect("paradox", jobs, options.out)
    finish(options.out, [job for job in jobs if job.facts.get("seed") != 1])
    found = collect("paradox", jobs, options.out)
    assert found["missing"] == 2
    assert {name: list(seeds) for name, seeds in found["numbers"].items()} == {"sft": ["0"], "f1": ["0"]}
    assert {row["verdict"] for row in decide("paradox", found["numbers"])} == {"undecided"}


def test_the_committed_page_holds_exactly_the_committed_results() -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert fill_document(text, read_results(ROOT / "docs" / "study")) == text
    assert all(f"<!-- study:{name} -->" in text for name in STUDIES)
    with pytest.raises(UserError, match="marker study:other: expected one of paradox"):
        fill_document("<!-- study:other -->\n<!-- end -->", {})


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_pages_show_the_committed_numbers(page: str) -> None:
    data = read_results(ROOT / "docs" / "study")
    numbers = {**data["baselines"]["numbers"], **data["parts"]["numbers"]}
    titles = {**data["baselines"]["titles"], **data["parts"]["titles"]}
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index("| method | slow P / R / F1 |") :].split("\n\n")[0]
    rows = {cells[1].strip(): cells[2:4] for cells in (line.split("|") for line in table.splitlines()[2:])}
    wanted = {"SFT", "F1-GRPO", "MER-R1"} if page == "README.md" else set(titles.values())
    assert set(rows) == wanted
    for variant, title in ((variant, title) for variant, title in titles.items() if title in wanted):
        for mode, cell in zip(("slow", "fast"), rows[title], strict=True):
            means = [
                fmean(run["test"][mode][name] for run in numbers[variant].values())
                for name in ("precision", "recall", "f1")
            ]
            assert cell.strip() == " / ".join(f"{mean:.3f}" for mean in means), (title, mode)
