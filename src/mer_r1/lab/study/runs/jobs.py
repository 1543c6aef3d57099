"""Plan of a study: the jobs that its variants and seeds need, in order, each once.

A job is one command with its own folder. The folder's name contains a hash of everything that determines the result:
the recipe's section with all overrides, the seed, and the content of what it starts from. Two studies that need the
same run use the same folder; a changed recipe gets a new folder and never mixes with old results.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.lab.study.runs.variants import READING, STUDIES, VARIANTS, Variant
from mer_r1.training.recipe_info import parse_yaml

CLI, WORKER, LAUNCHER = "mer_r1.cli", "mer_r1.lab.study.runs.worker", "torch.distributed.run"
TRAIN_CLIPS, VALIDATION_CLIPS, TEST_CLIPS = 3600, 300, 1000
NEW_TOKENS = {"once": 96, "twice": 112}
"""Token limit of evaluation by answer form: higher than in training, so that few answers are cut."""
METHOD_ONLY: tuple[str, ...] = (
    "calibration",
    "conditional",
    "anchors",
    "calibration_share",
    "alpha",
    "spread_floor",
    "space",
    "sides",
)
METHOD_ONLY += ("confidence_level", "confidence_clip")
"""Settings that only a calibrating method reads; they do not change the runs of other methods."""


@dataclass(frozen=True)
class StudyJob:
    """One command.

    Attributes:
        name: folder below the study's folder; identifies the job.
        module: module to run with ``python -m``.
        arguments: command line.
        needs: names of the jobs that must finish first.
        facts: metadata kept with the result: kind, and for policies variant, seed, settings.
        alone: whether the job uses all cores.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Options:
    """Options of a study.

    Attributes:
        out: folder of the study.
        recipe: recipe file whose sections are overridden.
        seeds: number of seeds, counted from 0.
        scenes: manifest of the training clips; None generates them.
        base: folder of the base model; None builds it.
        exam: manifest of the validation and test clips; None generates them.
        settings: further overrides of RL ("max_steps=8").
        sft_settings: further overrides of the cold start.
        clips: numbers of training, validation and test clips to generate.
        trial: whether to evaluate on validation clips only.
    """

    out: Path
    recipe: Path
    seeds: int = 8
    scenes: Path | None = None
    base: Path | None = None
    exam: Path | None = None
    settings: tuple[str, ...] = ()
    sft_settings: tuple[str, ...] = ()
    clips: tuple[int, int, int] = (TRAIN_CLIPS, VALIDATION_CLIPS, TEST_CLIPS)
    trial: bool = False


def plan(studies: Sequence[str], options: Options) -> list[StudyJob]:
    """All jobs of some studies (keys of `STUDIES`), each after the jobs that it needs, seed by seed.

    Raises:
        UserError: if an option is invalid.
    """
    planner = _Planner(options)
    splits = _splits_of(studies, options.trial)
    measured = {variant for name in studies if STUDIES[name].gradients for variant in STUDIES[name].variants}
    for seed in range(options.seeds):
        for name in splits:
            if seed < (VARIANTS[name].seeds or options.seeds):
                planner.add_variant(name, seed, sorted(splits[name]), name in measured)
    return list(planner.jobs.values())


def _splits_of(studies: Sequence[str], trial: bool) -> dict[str, set[str]]:
    """Variant -> the splits it is evaluated on, in the order of the studies."""
    found: dict[str, set[str]] = {}
    for name in studies:
        study = STUDIES[name]
        if trial and {"val", "test"} <= {*study.splits}:
            raise UserError(f"--trial: study {name!r} chooses on validation clips and judges on test clips")
        for variant in study.variants:
            found.setdefault(variant, set()).update(("val",) if trial else study.splits)
    return found


def section(recipe: Path, name: str) -> dict[str, Any]:
    """A stage's section of a recipe merged over the common one, values as text.

    Raises:
        UserError: if the file or a section is missing.
    """
    try:
        content = _parsed(recipe.read_text(encoding="utf-8"))
        return {key: str(value) for key, value in {**content["common"], **content[name]}.items()}
    except (OSError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: expected a recipe with the sections common and {name}; {error!r}") from error


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    return parse_yaml(text, "the study's recipe is not valid YAML")


def overrides(texts: Iterable[str]) -> dict[str, str]:
    """Parse key=value texts.

    Raises:
        UserError: if a text has no "=".
    """
    found = {}
    for text in texts:
        key, given, value = text.partition("=")
        if not given:
            raise UserError(f"invalid setting {text!r}: expected key=value")
        found[key.strip()] = value.strip()
    return found


def settings_of(variant: Variant, options: Options) -> dict[str, str]:
    """The overrides of a variant's RL run that its method reads: `READING`, the user's, and first of all its own."""
    wanted = {**READING, **overrides(options.settings), **(variant.rl or {})}
    if wanted.get("method") != "mer-r1":
        wanted = {key: value for key, value in wanted.items() if key not in METHOD_ONLY}
    return wanted


def content_hash(path: Path) -> str:
    """Hash of the content of a manifest or a model folder.

    Raises:
        UserError: if the file cannot be read.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


class _Planner:
    """Collects jobs; adding the same job twice keeps one."""

    def __init__(self, options: Options) -> None:
        self.options, self.out, self.jobs = options, options.out, dict[str, StudyJob]()
        self.shared: list[str] = []
        train, val, test = options.clips
        self.scenes = options.scenes or self._scenes("scenes", {"train": train})
        self.exam = options.exam or self._scenes("exam", {"val": val, "test": test})
        self.base = options.base or self._base()
        identity = {"scenes": self._identity(options.scenes, "scenes"), "base": self._identity(options.base, "base")}
        self.origin = {**identity, "exam": self._identity(options.exam, "exam"), "clips": list(options.clips)}
        self._features()

    def _identity(self, given: Path | None, made: str) -> str:
        stage = "build" if made == "base" else "rl"
        return content_hash(given) if given else _hash([made, section(self.options.recipe, stage)])

    def _add(self, job: StudyJob) -> str:
        self.jobs.setdefault(job.name, job)
        return job.name

    def _scenes(self, name: str, splits: Mapping[str, int]) -> Path:
        folder = self.out / name / "corpus"  # a subfolder: the job's folder also holds the schedule's files
        values = json.dumps({"out": str(folder), "splits": dict(splits)})
        self.shared.append(self._add(StudyJob(name, WORKER, ("scenes", values), facts={"kind": "scenes"}, alone=True)))
        return folder / "manifest.jsonl"

    def _base(self) -> Path:
        # Two processes, as in the demo: every other job waits for this one.
        folder = self.out / "base"
        clips = int(section(self.options.recipe, "build")["per_device_train_batch_size"])
        arguments: tuple[str, ...] = ("--standalone", "--nproc_per_node", "2", "-m", CLI, "build", "--tiny")
        arguments += ("--config", str(self.options.recipe), f"manifest={self.scenes}", "seed=0")
        arguments += (f"per_device_train_batch_size={clips // 2}", f"output_dir={folder}")
        arguments += ("disable_tqdm=true", "resume_from_checkpoint=true")
        needs = tuple(self.shared)
        self.shared.append(self._add(StudyJob("base", LAUNCHER, arguments, needs, {"kind": "base"}, alone=True)))
        return folder / "model"

    def _features(self) -> None:
        # The towers are frozen, so all runs share these features. Only clips that SFT, RL or evaluation use.
        parts = [[str(self.scenes), "train", self._clips(stage)] for stage in ("sft", "rl")]
        parts += [[str(self.exam), split, ":"] for split in ("val", "test")]
        values = json.dumps({"model": str(self.base), "parts": parts})
        job = f"features-{_hash(self.origin)}", WORKER, ("features", values), tuple(self.shared), {"kind": "features"}
        self.shared = [self._add(StudyJob(*job, alone=True))]

    def _clips(self, stage: str) -> str:
        given = overrides(self.options.sft_settings if stage == "sft" else self.options.settings)
        return given.get("clips") or section(self.options.recipe, stage).get("clips", ":")

    def add_variant(self, name: str, seed: int, splits: Sequence[str], measured: bool) -> None:
        """One variant with one seed: its run, the run's evaluations and, if `measured`, its gradients."""
        cold = VARIANTS[name].rl is None
        run = self._cold_start(VARIANTS[name], seed) if cold else self._reinforce(name, seed)
        self._evaluate(run, name, seed, splits)
        if measured:
            self._gradients(run, name, seed, ("model",) if cold else ("checkpoint", "model"))

    def _cold_start(self, variant: Variant, seed: int) -> str:
        changed = {**overrides(self.options.sft_settings), **variant.sft}
        key = _hash([self.origin, section(self.options.recipe, "sft"), changed, seed])
        name = f"runs/sft-{_form(variant)}-s{seed}-{key}"
        arguments = self._train("sft", name, self.base, changed, seed)
        alone = next(name for name, kind in VARIANTS.items() if kind.rl is None and kind.sft == variant.sft)
        facts = {"kind": "sft", "variant": alone, "seed": seed, "settings": changed, "start": str(self.base)}
        return self._add(StudyJob(name, CLI, arguments, tuple(self.shared), facts))

    def _reinforce(self, name: str, seed: int) -> str:
        variant = VARIANTS[name]
        start = self._cold_start(variant, seed)
        changed = settings_of(variant, self.options)
        folder = f"runs/{name}-s{seed}-{_hash([start, section(self.options.recipe, 'rl'), changed, seed])}"
        arguments = self._train("rl", folder, self.out / start / "model", changed, seed)
        facts = {"kind": "rl", "variant": name, "seed": seed, "settings": changed, "start": start}
        return self._add(StudyJob(folder, CLI, arguments, (start,), facts))

    def _train(self, stage: str, folder: str, model: Path, changed: Mapping[str, str], seed: int) -> tuple[str, ...]:
        fixed = {"manifest": self.scenes, "model": model, "output_dir": self.out / folder, "seed": seed}
        fixed |= {"disable_tqdm": "true", "resume_from_checkpoint": "true", "workers": 0, "report_to": "none"}
        settings = (f"{key}={value}" for key, value in {**fixed, **changed}.items())
        return (stage, "--config", str(self.options.recipe), *settings)

    def _evaluate(self, run: str, variant: str, seed: int, splits: Sequence[str]) -> None:
        for split in splits:
            name = f"{run}/{split}"
            model = self.out / run / "model"
            arguments: tuple[str, ...] = ("evaluate", "--model", str(model), "--manifest", str(self.exam))
            arguments += ("--out", str(self.out / name), "--split", split, "--batch-size", "64", "--json")
            arguments += ("--max-new-tokens", str(NEW_TOKENS[_form(VARIANTS[variant])]))
            facts = {"kind": "evaluate", "variant": variant, "seed": seed, "split": split, "run": run}
            self._add(StudyJob(name, CLI, arguments, (run,), facts))

    def _gradients(self, run: str, variant: str, seed: int, models: Sequence[str]) -> None:
        values = {"run": str(self.out / run), "models": list(models), "manifest": str(self.scenes), "seed": seed}
        values |= {"out": str(self.out / run / "gradients"), "clips": self._clips("rl")}
        facts = {"kind": "gradients", "variant": variant, "seed": seed, "run": run}
        self._add(StudyJob(f"{run}/gradients", WORKER, ("gradients", json.dumps(values)), (run,), facts))


def _form(variant: Variant) -> str:
    return "twice" if variant.sft.get("targets") == "twice" else "once"


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()
