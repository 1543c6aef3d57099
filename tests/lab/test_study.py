"""The study as data, its runs, their cache and resumption, intervals and verdicts, tables and the page."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from media_samples import tone, write_media

from mer_r1.cli.app import app
from mer_r1.cli.diagnose import _method
from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record, append_record
from mer_r1.lab.study.results import intervals
from mer_r1.lab.study.results.claims import CLAIMS, HYPOTHESES, conclude, decide
from mer_r1.lab.study.results.collect import collect, cost, diagnosis, score, theory
from mer_r1.lab.study.results.intervals import ClaimVerdict, estimate, holm, paired, t_quantile, verdict
from mer_r1.lab.study.results.report import fill_document, publish, read_results, write_report
from mer_r1.lab.study.runs.jobs import CALIBRATION, DEFAULT, REWARDS, Options, StudyJob, plan, settings_of
from mer_r1.lab.study.runs.schedule import DONE_FILE, is_done, run_jobs
from mer_r1.lab.study.runs.session import keep_session, read_session, to_options
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS, chosen_studies
from mer_r1.rl.method import Method
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"


# --- the studies as data ----------------------------------------------------------------------------------------------


def test_no_two_variants_are_told_the_same() -> None:
    told = [json.dumps([variant.rl, variant.sft], sort_keys=True) for variant in VARIANTS.values()]
    assert len(set(told)) == len(told)


def test_every_setting_of_the_method_is_known_as_calibration_or_reward() -> None:
    assert {"method", *CALIBRATION, *REWARDS} == {item.name for item in fields(Method)}
    assert Method().calibration == DEFAULT["calibration"]


def test_every_claim_stands_in_a_study_that_makes_its_runs() -> None:
    for claim in CLAIMS:
        study = STUDIES[claim.study]
        places = [place.split("/") for place in (claim.first, claim.second) if place]
        assert {variant for variant, *_ in places} <= set(study.variants), claim
        for variant, kind, judged, _ in places:
            assert kind != "diagnosis" or (judged in VARIANTS[variant].diagnosed and study.diagnosed > 1)
    assert len({(claim.study, claim.text) for claim in CLAIMS}) == len(CLAIMS)
    assert [name for name in HYPOTHESES if name in {claim.hypothesis for claim in CLAIMS}] == list(HYPOTHESES)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "clips.jsonl").write_text("clips", encoding="utf-8")
    return Options(tmp_path / "out", TINY, 2, tmp_path / "clips.jsonl", str(tmp_path / "base"))


def runs(jobs: list[StudyJob], kind: str = "rl") -> list[StudyJob]:
    return [job for job in jobs if job.facts["kind"] == kind]


def test_runs_of_all_studies_are_made_once_and_needs_come_first(options: Options) -> None:
    jobs = plan(list(STUDIES), options)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(job.name) for job in jobs for need in job.needs)
    cold = [name for name, variant in VARIANTS.items() if variant.rl is None]
    # The recipe's calibration is "reasoning": that variant and MER-R1 are the same runs.
    assert {"variants": ["mer-r1", "reasoning"]}.items() <= runs(plan(["bed"], options))[3].facts.items()
    assert len(runs(jobs)) == 2 * (len(VARIANTS) - len(cold) - 1)
    starts = [(*job.facts["variants"], job.facts["seed"]) for job in runs(jobs, "sft")]
    assert sorted(starts) == sorted((name, seed) for name in cold for seed in (0, 1))
    for study in STUDIES:
        assert {job.name for job in plan([study], options)} <= set(names)


def test_every_study_has_its_own_number_of_seeds(options: Options) -> None:
    for study, seeds in {"bed": 16, "theory": 8}.items():
        jobs = plan([study], replace(options, seeds=None))
        assert {job.facts["seed"] for job in runs(jobs)} == set(range(seeds))


def test_a_seed_shares_its_cold_start_between_variants(options: Options) -> None:
    found = runs(plan(["parts"], options))
    starts = {job.facts["seed"]: {j.needs for j in found if j.facts["seed"] == job.facts["seed"]} for job in found}
    assert all(len(needs) == 1 for needs in starts.values())
    assert starts[0] != starts[1]
    for job in found:
        assert f"seed={job.facts['seed']}" in job.arguments


def asked(jobs: list[StudyJob]) -> set[tuple[str, str]]:
    """First variant of a run, and what is measured of it."""
    of = {job.name: job.facts["variants"][0] for job in jobs if "variants" in job.facts}
    return {(of[job.facts["run"]], job.name.rpartition("/")[2]) for job in runs(jobs, "measure")}


def test_what_is_measured(options: Options) -> None:
    names = ["mer-r1" if name == "reasoning" else name for name in STUDIES["bed"].variants]
    both = {(name, split) for name in names for split in ("test", "test-sampled")}
    before = {("sft", f"diagnosis-{name}") for name in ("answer", "reasoning", "hinge")}
    after = {("ad", "diagnosis-answer"), ("mer-r1", "diagnosis-reasoning")}
    after |= {(name, f"diagnosis-{name}") for name in ("answer", "hinge")}
    assert asked(plan(["bed"], options)) == both | before | after
    assert asked(plan(["theory"], options)) == {(name, "gradients") for name in STUDIES["theory"].variants}
    splits = ("val", "test", "test-sampled")
    assert asked(plan(["auto"], options)) == {(name, split) for name in STUDIES["auto"].variants for split in splits}
    diagnosed = [job for job in plan(["bed"], replace(options, seeds=6)) if "/diagnosis-answer" in job.name]
    assert len(diagnosed) == 4 * 3  # four seeds


def test_a_trial_asks_about_validation_clips_only(options: Options) -> None:
    jobs = plan(["parts", "theory"], replace(options, trial=True))
    assert {measure for _, measure in asked(jobs)} == {"val", "val-sampled", "gradients"}
    assert {job.name for job in runs(jobs)} == {job.name for job in runs(plan(["parts", "theory"], options))}
    with pytest.raises(UserError, match="--trial: study 'auto' chooses on validation clips and judges on test clips"):
        plan(["auto"], replace(options, trial=True))


RECIPES = (
    "",
    "counterfactual_rows: 4\n  replay: 1",
    "fast_share: 0.25\n  calibration: hinge\n  calibration_share: 0.3",
)
"""Lines that the sections of the recipe may get."""


@pytest.mark.parametrize("lines", RECIPES)
def test_every_command_is_one_that_its_program_accepts(options: Options, tmp_path: Path, lines: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    where = "  targets: slow\n" if "replay" in lines else "  method: mer-r1\n"
    text = TINY.read_text(encoding="utf-8").replace(where, f"{where}  {lines}\n" if lines else where)
    if "hinge" in lines:  # in place of the recipe's own
        text = text.replace("  calibration: reasoning\n", "").replace("  calibration_share: 0.25 #", "  #")
    recipe.write_text(text, encoding="utf-8")
    program = typer.main.get_command(app)
    for job in plan(list(STUDIES), replace(options, seeds=1, recipe=recipe)):
        command, *arguments = job.arguments
        if command in ("sft", "rl"):
            kind: Any = {"sft": SFTRecipe, "rl": RLRecipe}[command]
            read = read_recipe(kind, recipe, arguments[2:])
            if "reasoning" in job.facts["variants"]:
                assert (read.calibration, read.share) == ("reasoning", 0.3 if "hinge" in lines else 0.25)
            if "first-reading" in job.facts["variants"]:
                assert (read.calibration, read.conditional, read.anchors) == ("difference", False, "all")
                assert (read.alpha, read.calibration_share, read.spread_floor) == (0.1, None, 0)
        elif job.module == "mer_r1.cli":
            given = program.commands[command].make_context(command, list(arguments)).params
            assert given["max_new_tokens"] == (112 if "videoauto" in job.name or "twice" in job.name else 96)
            if command == "diagnose":
                assert _method(given["config"], given["settings"]).calibration == job.name.rpartition("-")[2]
            else:
                drawn = (8, 1.0) if job.name.endswith("-sampled") else (1, 0.0)
                assert (given["num_answers"], given["temperature"]) == drawn


def test_the_name_changes_with_whatever_decides_a_run(options: Options, tmp_path: Path) -> None:
    def of_f1(changed: Options) -> str:
        return runs(plan(["paradox"], changed))[0].name

    first = of_f1(options)
    assert of_f1(options) == first
    assert of_f1(replace(options, settings=("max_steps=8",))) != first
    assert of_f1(replace(options, sft_settings=("num_train_epochs=1",))) != first
    assert of_f1(replace(options, settings=("alpha=0.3",))) == first  # F1-GRPO does not read it
    recipe = tmp_path / "other.yaml"
    recipe.write_text(TINY.read_text(encoding="utf-8").replace("  beta: 0.15", "  beta: 0.05"), encoding="utf-8")
    assert of_f1(replace(options, recipe=recipe)) != first
    recipe.write_text(
        TINY.read_text(encoding="utf-8").replace("  method: mer-r1\n", "  method: mer-r1\n  anchors: all\n")
    )
    assert of_f1(replace(options, recipe=recipe)) == first
    assert runs(plan(["bed"], replace(options, recipe=recipe)))[2].name != runs(plan(["bed"], options))[2].name
    (tmp_path / "base" / "model.safetensors").write_bytes(b"other weights")
    assert of_f1(options) != first
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        plan(["bed"], replace(options, base="nowhere"))


def test_settings_for_all_do_not_undo_a_variant(options: Options) -> None:
    changed = replace(options, settings=("alpha=0.3", "max_steps=8"))
    assert settings_of(VARIANTS["first-reading"], changed)["alpha"] == "0.1"
    assert settings_of(VARIANTS["mer-r1"], changed) == {"alpha": "0.3", "max_steps": "8", "method": "mer-r1"}
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


def test_a_folder_keeps_the_media_of_its_manifest(tmp_path: Path) -> None:
    media, manifest = tmp_path / "a.wav", tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"id": "a", "audio": "a.wav", "labels": ["happy"]}) + "\n")
    write_media(media, sound=tone(0.2), audio_codec="pcm_s16le")
    told = {"seeds": 1, "num_clips": "1480,300,400", "num_answers": 4, "scenes": manifest, "recipe": TINY}
    for name in ("paradox", "theory"):
        keep_session(name, tmp_path / "study", told, "")
    write_media(media, sound=tone(0.3), audio_codec="pcm_s16le")
    with pytest.raises(UserError, match=r"other settings \(media: .*, now .*\); choose another --out"):
        keep_session("paradox", tmp_path / "study", told, "")


def test_a_folder_keeps_its_recipe_and_its_clips(options: Options, tmp_path: Path) -> None:
    out = tmp_path / "study"
    told = {"seeds": 2, "num_clips": "40,8,8", "num_answers": 4, "scenes": None, "base": options.base, "recipe": TINY}
    keep_session("paradox", out, told, "mer-r1 study paradox")
    told["recipe"] = None
    found = to_options(out, told)
    assert (found.recipe, found.num_clips, found.num_answers) == (out / "recipe.yaml", (40, 8, 8), 4)
    keep_session("theory", out, told, "mer-r1 study theory")
    studies, jobs = read_session(out)
    own = {"paradox": "mer-r1 study paradox", "theory": "mer-r1 study theory"}
    assert list(studies.items()) == list(own.items())
    assert [job.facts["kind"] for job in jobs[:3]] == ["scenes", "features", "sft"]
    # Of a study that was asked for by its name too, that is the shorter way to its table.
    keep_session("all", out, told, "mer-r1 study all")
    studies, _ = read_session(out)
    assert studies == {**dict.fromkeys(chosen_studies("all"), "mer-r1 study all"), **own}
    assert list(studies) == chosen_studies("all")
    with pytest.raises(UserError, match=r"other settings \(trial: None, now True\); choose another --out"):
        keep_session("parts", out, {**told, "trial": True}, "")
    with pytest.raises(UserError, match=r"other settings \(num_clips: .*, now '1,1,1'\); choose another --out"):
        keep_session("parts", out, {**told, "num_clips": "1,1,1"}, "")
    for name, value in {"num_answers": 2, "base": "other"}.items():
        with pytest.raises(UserError, match=rf"other settings \({name}: .*\); choose another --out"):
            keep_session("parts", out, {**told, name: value}, "")
    assert json.loads((out / "study.json").read_text())["studies"]["all"]["media"] is None
    changed = tmp_path / "changed.yaml"
    changed.write_text("common: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="differs"):
        keep_session("auto", out, {**told, "recipe": changed}, "")
    with pytest.raises(UserError, match="not a study's folder"):
        read_session(tmp_path / "nowhere")
    with pytest.raises(UserError, match="TRAIN,VAL,TEST"):
        to_options(out, {**told, "num_clips": "3600"})
    with pytest.raises(UserError, match="--num-clips: no clips are made"):
        to_options(out, {**told, "scenes": options.scenes})
    (out / "study.json").write_text('{"studies": {"parts": {"told": {}, "command": ""}}}', encoding="utf-8")
    with pytest.raises(UserError, match="earlier version"):
        read_session(out)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_t_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 31), 31, 40, 60, 120, 1000):
        for tail in (0.025, 0.025 / 2, 0.025 / 3):
            assert t_quantile(degrees, tail) == pytest.approx(stats.t.ppf(1 - tail, degrees), rel=1e-9)


def test_interval_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t(2) 4.302653, half width 4.302653 / sqrt(3).
    found = paired({"0": 2.0, "1": 4.0, "2": 6.0, "3": 9.0}, {"0": 1.0, "1": 2.0, "2": 3.0})
    assert found["n"] == 3
    assert found["mean"] == 2.0
    assert found["high"] == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
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
    assert verdict(over(0.1, 0.3), bound=0.2) is ClaimVerdict.UNDECIDED
    assert verdict(over(0.1, 0.3), bound=0.05) is ClaimVerdict.HOLDS
    assert verdict(over(-0.005, 0.005), sign=-1, bound=0.01) is ClaimVerdict.HOLDS


def test_holm_by_hand() -> None:
    # Four seeds of mean +- 1: the standard error is (4/3)**0.5 / 2 = 0.5774. Halves of the intervals at 0.05 / 3,
    # 0.05 / 2 and 0.05 with t(3) = 4.857, 4.177 and 3.182: 2.804, 2.411 and 1.837.
    def around(mean: float) -> tuple[dict[str, float | None], dict[str, float | None]]:
        return {str(seed): mean + (-1) ** seed for seed in range(4)}, dict.fromkeys("0123", 0.0)

    def halves(*means: float) -> list[float]:
        return [round(found["high"] - found["mean"], 3) for found in holm([around(mean) for mean in means])]

    assert halves(9.0, -4.0, 2.0) == [2.804, 2.411, 1.837]
    # 2.2 does not reach 2.411: the procedure stops, though 2.2 and 2.0 alone would exclude 0.
    assert halves(2.2, -4.0, 2.0) == [2.411, 2.804, 2.411]
    assert halves(2.0) == [1.837]
    assert holm([]) == []


def test_hypotheses_need_all_of_their_parts_and_b6_one() -> None:
    def rows(hypothesis: str, *verdicts: str) -> list[dict[str, str]]:
        return [{"hypothesis": hypothesis, "verdict": one} for one in verdicts]

    for parts, of_all, of_one in (
        (("holds", "holds"), "holds", "holds"),
        (("holds", "undecided"), "undecided", "holds"),
        (("holds", "does not hold"), "does not hold", "holds"),
        (("undecided", "does not hold"), "does not hold", "undecided"),
        (("does not hold", "does not hold"), "does not hold", "does not hold"),
    ):
        assert conclude(rows("B3", *parts))["B3"] == of_all
        assert conclude(rows("B6", *parts))["B6"] == of_one
    assert set(conclude([]).values()) == {"undecided"}


# --- numbers, tables, page --------------------------------------------------------------------------------------------


def test_cost_of_a_log_by_hand() -> None:
    log = [
        {"step": 5, "loss": 0.1, "completions/mean_length": 40.0, "num_tokens": 100.0},
        {"step": 8, "loss": 0.1, "completions/mean_length": 48.0, "num_tokens": 190.0},
        {"step": 8, "train_runtime": 30.0},
    ]
    found = cost(log)
    assert (found["steps"], found["seconds"], found["tokens_read"]) == (8, 30.0, 190.0)
    assert found["completion_tokens"] == (5 * 40 + 3 * 48) / 8
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
    found = score({"val": rows["val"], "greedy": rows["test"]})
    assert found["greedy"]["slow"]["f1"] == 1.0
    assert found["auto"]["auto"] == {"threshold": 0.9, "share": 0.6667, "f1": 1.0, "tokens": 39.3333}
    unsure = [replace(record, sureness=0.5) for record in rows["test"]]
    assert score({"val": rows["val"], "greedy": unsure})["auto"]["threshold"] == found["auto"]["threshold"]
    assert score({"val": rows["val"]}) == {}


def test_a_clips_score_is_the_mean_of_its_sampled_answers() -> None:
    rows = fake_records(0, "slow")["test"]
    wrong = [replace(record, draw=1, scores=dict.fromkeys(("precision", "recall", "f1"), 0.0)) for record in rows]
    found = score({"greedy": rows, "sampled": [*rows, *wrong]})
    assert (found["greedy"]["slow"]["f1"], found["sampled"]["slow"]["f1"]) == (1.0, 0.5)
    assert found["sampled"]["slow"]["clips"] == 12


def made_diagnosis(lost: float) -> dict[str, Any]:
    """The parts of a diagnosis's JSON that are read."""
    exchange = {"own": {"mean": 0.4}, "other": {"mean": 0.4 - lost}, "difference": {"mean": lost}}
    checks = [{"name": "reasoning", "value": lost, "passed": True}, {"name": "cosine", "value": 0.99, "passed": False}]
    others = {"explained": {"f1": {"mean": 0.2}}, "below": {"mean": 0.5}, "cosine": {"mean": 0.99}}
    return {"exchange": exchange, "checks": checks, **others, "can_act": False}


def test_what_is_kept_of_a_diagnosis() -> None:
    found = diagnosis(made_diagnosis(0.15))
    assert (found["own"], found["other"], found["exchange"], found["explained"]) == (0.4, 0.25, 0.15, 0.2)
    assert (found["met"], found["conditions"], found["passed"]) == (1, 2, 0.0)
    assert found["gate"] == {"reasoning": [0.15, True], "cosine": [0.99, False]}


LOG = [
    {"step": 5, "loss": 0.1, "completions/mean_length": 40.0, "num_tokens": 10.0},
    {"step": 5, "train_runtime": 9.0},
]
INTERFERENCE = {"sigma_recall": 0.3, "sigma_precision": 0.1, "rho": 0.5, "predicted_recall": 0.8}
INTERFERENCE |= {"predicted_precision": 0.3, "measured_recall": 0.8, "measured_precision": 0.3}
GEOMETRY = {
    f"cos_{pair}": 0.5 for pair in ("recall_precision", "rd_recall", "rd_precision", "ad_recall", "ad_precision")
}


def finish(out: Path, jobs: list[StudyJob]) -> None:
    """Write the files of finished runs, with synthetic records."""
    seeds = {job.name: job.facts["seed"] for job in jobs if "seed" in job.facts}
    for job in jobs:
        folder = out / job.name
        folder.mkdir(parents=True, exist_ok=True)
        done = {**job.facts, "seconds": 3.0, "commit": "c0ffee", "changed": False, "versions": {"torch": "2"}}
        (folder / DONE_FILE).write_text(json.dumps(done), encoding="utf-8")
        if job.facts["kind"] in ("sft", "rl"):
            line = {**LOG[0], **{f"interference/{name}": value for name, value in INTERFERENCE.items()}}
            text = "".join(json.dumps(entry) + "\n" for entry in (line, LOG[1]))
            (folder / "log.jsonl").write_text(text, encoding="utf-8")
        measure = job.facts.get("measure", "")
        if measure == "gradients":
            (folder / "gradients.json").write_text(json.dumps(GEOMETRY), encoding="utf-8")
        elif measure == "diagnosis":
            text = json.dumps(made_diagnosis(0.15 + 0.001 * seeds[job.facts["run"]]))
            (folder / "diagnosis.json").write_text(text, encoding="utf-8")
        elif measure:
            better = "fast" if job.name.startswith(("runs/sft", "runs/f1")) else "slow"
            with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
                for record in fake_records(seeds[job.facts["run"]], better)[measure.partition("-")[0]]:
                    append_record(file, record)


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
    assert parts["slow F1 of MER-R1 > slow F1 of F1-GRPO"]["mean"] == pytest.approx(2 / 3, abs=1e-3)
    assert results["parts"]["claims"] == list(parts.values())
    bed = conclude(results["bed"]["claims"])
    # F1-GRPO is as good as SFT, and all others are as good as AD.
    of_rl = {"B3": "undecided", "B4": "holds", "B5": "holds", "B6": "undecided", "B7": "holds"}
    assert bed == {"B1": "holds", "B2": "holds", **of_rl}
    assert "| **B2: another clip's reasoning costs at least 0.10 F1, before and after RL** |  |  | **holds** |" in page
    assert "| F1 owed to the reasoning of SFT > 0.1 | +0.150 [+0.144, +0.157] | 2 | holds |" in page
    assert "| SFT | MER-R1 (hinge) | 0.400 [0.400, 0.400] |" in page
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
    decided = {row["claim"]: row for row in data["claims"]}
    assert decided["slow F1 of MER-R1 > slow F1 of F1-GRPO"]["mean"] == pytest.approx(2 / 3, abs=1e-3)
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if " | slow | " in line]
    assert rows == ["SFT", "F1-GRPO", "RD", "AD", "MER-R1"]  # in the order of the study
    (tmp_path / "study.md").write_text("<!-- study:parts -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds trials"):
        publish(options.out, tmp_path)


def test_unfinished_runs_are_counted_and_left_out(options: Options) -> None:
    jobs = plan(["paradox"], options)
    with pytest.raises(UserError, match="finished"):
        collect("paradox", jobs, options.out)
    finish(options.out, [job for job in jobs if "-s1-" not in job.name])
    found = collect("paradox", jobs, options.out)
    assert found["missing"] == 2
    assert {name: list(seeds) for name, seeds in found["numbers"].items()} == {"sft": ["0"], "f1": ["0"]}
    assert {row["verdict"] for row in decide("paradox", found["numbers"])} == {"undecided"}


def test_a_policy_that_cannot_be_diagnosed_is_scored_all_the_same(options: Options) -> None:
    jobs = plan(["bed"], options)
    finish(options.out, [job for job in jobs if not ("/hinge-s1-" in job.name and "/diagnosis-" in job.name)])
    found = collect("bed", jobs, options.out)
    assert found["missing"] == 0
    assert [found["numbers"]["hinge"][seed]["diagnosis"].keys() for seed in "01"] == [{"hinge"}, set()]
    lost = {row["claim"]: row["n"] for row in decide("bed", found["numbers"]) if row["hypothesis"] == "B2"}
    assert lost["F1 owed to the reasoning of MER-R1 (hinge) > 0.1"] == 1


def test_a_study_needs_only_what_it_measures_itself_and_the_seeds_of_all_its_variants(options: Options) -> None:
    jobs = plan(["parts", "theory"], replace(options, seeds=None))
    assert {job.facts["seed"] for job in runs(jobs)} == set(range(16))
    finish(options.out, [job for job in jobs if job.facts.get("measure") != "gradients"])
    found = collect("parts", jobs, options.out)
    assert (found["missing"], len(found["numbers"]["ad"])) == (0, 16)
    with pytest.raises(UserError, match="no run of the study 'theory' is finished"):
        collect("theory", jobs, options.out)
    jobs = plan(["parts", "baselines"], replace(options, seeds=None))
    finish(options.out, jobs)
    found = collect("baselines", jobs, options.out)
    assert {len(seeds) for seeds in found["numbers"].values()} == {8}


def test_the_committed_page_holds_exactly_the_committed_results() -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert fill_document(text, read_results(ROOT / "docs" / "study")) == text
    assert all(f"<!-- study:{name} -->" in text for name in STUDIES)
    with pytest.raises(UserError, match="marker study:other: expected one of bed"):
        fill_document("<!-- study:other -->\n<!-- end -->", {})


def test_the_archive_shows_its_numbers() -> None:
    found = [
        json.loads((ROOT / "docs" / "archive" / f"{name}.json").read_text("utf-8")) for name in ("baselines", "parts")
    ]
    numbers, titles = ({**found[0][key], **found[1][key]} for key in ("numbers", "titles"))
    text = (ROOT / "docs" / "archive.md").read_text(encoding="utf-8")
    table = text[text.index("| method | slow P / R / F1 |") :].split("\n\n")[0]
    rows = {cells[1].strip(): cells[2:4] for cells in (line.split("|") for line in table.splitlines()[2:])}
    assert set(rows) == set(titles.values())
    for variant, title in titles.items():
        for mode, cell in zip(("slow", "fast"), rows[title], strict=True):
            means = [
                fmean(run["test"][mode][name] for run in numbers[variant].values())
                for name in ("precision", "recall", "f1")
            ]
            assert cell.strip() == " / ".join(f"{mean:.3f}" for mean in means), (title, mode)
