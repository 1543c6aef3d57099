"""From studies and seeds to runs: what has to be done, in which order, and which of it is the same.

A job is one command in a folder of its own, named after what it makes and a hash of everything that decides it: the
recipe's section with all overrides, the seed, and the content of what it starts from. Two studies that need the same
run find the same folder; a changed recipe gives a new one and never mixes with old results.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mer_r1.errors import UserError
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS, Variant

CLI, WORKER, LAUNCHER = "mer_r1.cli", "mer_r1.lab.study.runs.worker", "torch.distributed.run"
TRAIN_CLIPS, VALIDATION_CLIPS, TEST_CLIPS = 3600, 300, 1000
NEW_TOKENS = {"once": 96, "twice": 112}
"""Longest completions when asked, by form: more than in training, so that an answer is rarely cut."""
METHOD_ONLY = ("alpha", "space", "sides", "anchors", "confidence_level", "confidence_clip")
"""Settings that only a calibrating method reads: others run once, whatever these say."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: folder below the study's, and identity.
        module: what is run with ``python -m``.
        arguments: its command line.
        needs: names of the jobs that come first.
        facts: what it is about: kind, and for policies variant, seed, settings.
        alone: takes all cores.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Options:
    """What a study is run with.

    Attributes:
        out: folder of everything.
        recipe: the recipe file whose sections are overridden.
        seeds: how many, from 0 on.
        scenes: manifest of the training clips, if not made here.
        base: folder of the base model, if not made here.
        exam: manifest of validation and test clips, if not made here.
        settings: further overrides of RL ("max_steps=8").
        sft_settings: further overrides of the cold start.
        clips: of training, validation and test, where they are made here.
        trial: ask about validation clips only, whatever a study is judged by.
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


def plan(studies: Sequence[str], options: Options) -> list[Job]:
    """All jobs of some studies, those that others need first, whole seeds one after the other.

    Args:
        studies: keys of `STUDIES`.
        options: folder, seeds, what is already there.

    Raises:
        UserError: an option that cannot be read.
    """
    planner = _Planner(options)
    wanted = [STUDIES[name] for name in studies]
    names = list(dict.fromkeys(variant for study in wanted for variant in study.variants))
    asked = {name: {split for study in wanted if name in study.variants for split in study.splits} for name in names}
    if options.trial:
        if whole := [name for name in studies if {"val", "test"} <= {*STUDIES[name].splits}]:
            raise UserError(f"the study {whole[0]!r} chooses on validation clips and judges on test clips: no --trial")
        asked = {name: {"val"} for name in names}
    measured = {variant for study in wanted if study.gradients for variant in study.variants}
    for seed in range(options.seeds):
        for name in names:
            variant = VARIANTS[name]
            if seed >= (variant.seeds or options.seeds):
                continue
            run = planner.cold_start(variant, seed) if variant.rl is None else planner.reinforce(name, seed)
            planner.evaluate(run, planner.form(variant), name, seed, sorted(asked[name]))
            if name in measured:
                planner.gradients(run, name, seed, ("model",) if variant.rl is None else ("checkpoint", "model"))
    return list(planner.jobs.values())


def section(recipe: Path, name: str) -> dict[str, Any]:
    """A stage's section of a recipe laid over the common one, as texts.

    Raises:
        UserError: no such file, or no such section in it.
    """
    try:
        content = _parsed(recipe.read_text(encoding="utf-8"))
        return {key: str(value) for key, value in {**content["common"], **content[name]}.items()}
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{recipe}: expected a recipe with the sections common and {name}; {error!r}") from error


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def overrides(texts: Iterable[str]) -> dict[str, str]:
    """key=value texts as a mapping.

    Raises:
        UserError: a text without "=".
    """
    found = {}
    for text in texts:
        key, given, value = text.partition("=")
        if not given:
            raise UserError(f"cannot read {text!r}: settings are given as key=value")
        found[key.strip()] = value.strip()
    return found


def settings_of(variant: Variant, options: Options) -> dict[str, str]:
    """The overrides of a variant's RL run; those that its method does not read are left out.

    What the user set for all variants does not override what makes a variant what it is.
    """
    wanted = {**overrides(options.settings), **(variant.rl or {})}
    if wanted.get("method") != "mer-r1":
        wanted = {key: value for key, value in wanted.items() if key not in METHOD_ONLY}
    return wanted


def content_hash(path: Path) -> str:
    """Hash of a manifest's or a model's content.

    Raises:
        UserError: there is no such file.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


class _Planner:
    """Collects jobs; asking for the same one twice gives the same one."""

    def __init__(self, options: Options) -> None:
        self.options, self.out, self.jobs = options, options.out, dict[str, Job]()
        self.shared: list[str] = []
        train, val, test = options.clips
        self.scenes = options.scenes or self._scenes("scenes", {"train": train})
        self.exam = options.exam or self._scenes("exam", {"val": val, "test": test})
        self.base = options.base or self._base()
        identity = {"scenes": self._identity(options.scenes, "scenes"), "base": self._identity(options.base, "base")}
        self.origin = {**identity, "exam": self._identity(options.exam, "exam"), "clips": list(options.clips)}
        self._features()

    def _identity(self, given: Path | None, made: str) -> str:
        sections = {"base": "build"}
        return content_hash(given) if given else _hash([made, section(self.options.recipe, sections.get(made, "rl"))])

    def _add(self, job: Job) -> str:
        self.jobs.setdefault(job.name, job)
        return job.name

    def _scenes(self, name: str, splits: Mapping[str, int]) -> Path:
        folder = self.out / name / "corpus"  # of its own: beside it lies what the schedule keeps
        told = json.dumps({"out": str(folder), "splits": dict(splits)})
        self.shared.append(self._add(Job(name, WORKER, ("scenes", told), facts={"kind": "scenes"}, alone=True)))
        return folder / "manifest.jsonl"

    def _base(self) -> Path:
        # Over two processes, as in the demo: it is the one job that nothing can run beside.
        folder = self.out / "base"
        clips = int(section(self.options.recipe, "build")["per_device_train_batch_size"])
        arguments: tuple[str, ...] = ("--standalone", "--nproc_per_node", "2", "-m", CLI, "build", "--tiny")
        arguments += ("--config", str(self.options.recipe), f"manifest={self.scenes}", "seed=0")
        arguments += (f"per_device_train_batch_size={clips // 2}", f"output_dir={folder}")
        arguments += ("disable_tqdm=true", "resume_from_checkpoint=true")
        needs = tuple(self.shared)
        self.shared.append(self._add(Job("base", LAUNCHER, arguments, needs, {"kind": "base"}, alone=True)))
        return folder / "model"

    def _features(self) -> None:
        # Once, before runs that would all do the same side by side. The towers are frozen: the features are everyone's.
        # Only of clips that are used: SFT's, RL's and the exam's.
        parts = [[str(self.scenes), "train", self._clips(stage)] for stage in ("sft", "rl")]
        parts += [[str(self.exam), split, ":"] for split in ("val", "test")]
        told = json.dumps({"model": str(self.base), "parts": parts})
        name = f"features-{_hash(self.origin)}"
        self.shared = [self._add(Job(name, WORKER, ("features", told), tuple(self.shared), {"kind": "features"}, True))]

    def _clips(self, stage: str) -> str:
        given = overrides(self.options.sft_settings if stage == "sft" else self.options.settings)
        return given.get("clips") or section(self.options.recipe, stage).get("clips", ":")

    def form(self, variant: Variant) -> str:
        return "twice" if variant.sft.get("targets") == "twice" else "once"

    def cold_start(self, variant: Variant, seed: int) -> str:
        changed = {**overrides(self.options.sft_settings), **variant.sft}
        key = _hash([self.origin, section(self.options.recipe, "sft"), changed, seed])
        name = f"runs/sft-{self.form(variant)}-s{seed}-{key}"
        arguments = self._train("sft", name, self.base, changed, seed)
        alone = next(name for name, kind in VARIANTS.items() if kind.rl is None and kind.sft == variant.sft)
        facts = {"kind": "sft", "variant": alone, "seed": seed, "settings": changed, "start": str(self.base)}
        return self._add(Job(name, CLI, arguments, tuple(self.shared), facts))

    def reinforce(self, name: str, seed: int) -> str:
        variant = VARIANTS[name]
        start = self.cold_start(variant, seed)
        changed = settings_of(variant, self.options)
        folder = f"runs/{name}-s{seed}-{_hash([start, section(self.options.recipe, 'rl'), changed, seed])}"
        arguments = self._train("rl", folder, self.out / start / "model", changed, seed)
        facts = {"kind": "rl", "variant": name, "seed": seed, "settings": changed, "start": start}
        return self._add(Job(folder, CLI, arguments, (start,), facts))

    def _train(self, stage: str, folder: str, model: Path, changed: Mapping[str, str], seed: int) -> tuple[str, ...]:
        fixed = {"manifest": self.scenes, "model": model, "output_dir": self.out / folder, "seed": seed}
        fixed |= {"disable_tqdm": "true", "resume_from_checkpoint": "true", "workers": 0, "report_to": "none"}
        settings = (f"{key}={value}" for key, value in {**fixed, **changed}.items())
        return (stage, "--config", str(self.options.recipe), *settings)

    def evaluate(self, run: str, form: str, variant: str, seed: int, splits: Sequence[str]) -> None:
        for split in splits:
            name = f"{run}/{split}"
            arguments: tuple[str, ...] = (
                "evaluate",
                "--model",
                str(self.out / run / "model"),
                "--manifest",
                str(self.exam),
            )
            arguments += ("--out", str(self.out / name), "--split", split, "--batch-size", "64", "--json")
            arguments += ("--max-new-tokens", str(NEW_TOKENS[form]))
            facts = {"kind": "evaluate", "variant": variant, "seed": seed, "split": split, "run": run}
            self._add(Job(name, CLI, arguments, (run,), facts))

    def gradients(self, run: str, variant: str, seed: int, models: Sequence[str]) -> None:
        told = {"run": str(self.out / run), "models": list(models), "manifest": str(self.scenes), "seed": seed}
        told["out"] = str(self.out / run / "gradients")
        told["clips"] = self._clips("rl")
        facts = {"kind": "gradients", "variant": variant, "seed": seed, "run": run}
        self._add(Job(f"{run}/gradients", WORKER, ("gradients", json.dumps(told)), (run,), facts))


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()
