"""vLLM's CPU build (0.30.0) with a tiny Qwen2.5-Omni: the same answers and numbers as our policy, in RL and evaluation.

Run in the environment of `requirements/vllm.txt`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import vllm_cpu  # noqa: F401 (before anything imports vllm)
import vllm
import torch
from report import HERE, WORK, WORLD, check, gaps, start

sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "helpers")]

from mer_r1 import cli
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.answerers.checkpoint import Checkpoint
from mer_r1.evaluation.answerers.vllm import EngineModel
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.predict import encode_clip
from mer_r1.emotions.thinking import question
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.rl.rollout import rescore
from mer_r1.rl.vllm import colocated
from mer_r1.rl.vllm.colocated import Asked
from mer_r1.rl.vllm.parity import compare
from mer_r1.rl.vllm.rollouts import request_of
from mer_r1.rl.vllm.server import Served
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.rl_stage import run_rl

NAME = "vllm"
THINKER, WHOLE = str(WORLD / "thinker"), str(WORLD / "whole")
MANIFEST = WORLD / "clips" / "manifest.jsonl"
OUT = WORK / "vllm"
DATA = OUT / "data"
PORT = 8765
QUIET = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1"]
QUIET += ["clips=null", "gradient_accumulation_steps=1", "warmup_steps=0", "model_init_kwargs={dtype: auto}"]
RECIPE = HERE.parent / "recipes" / "qwen2.5-omni-rl.yaml"
STEP = ["max_steps=2", "per_device_train_batch_size=8", "num_generations=4", "max_completion_length=24", "seed=0"]
STEP += ["learning_rate=1e-3", "save_strategy=no", "rollouts=vllm", "vllm_max_model_length=512"]


def main() -> None:
    """Run every check; the first that fails ends the script."""
    start(NAME)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(WORLD / "docs" / "data", DATA)
    torch.set_num_threads(1)
    parity()
    answers()
    scored("policy")
    scored("engine")
    unsynchronised()
    adapters()
    served()


def parity() -> None:
    """`mer-r1 parity`: tokens, positions and log-probabilities of every clip."""
    with check(NAME, f"parity of 8 clips, vLLM {vllm.__version__}") as found:
        rows = list(compare(THINKER, read_manifest(MANIFEST)))
        same = sum(row.ids is None and row.positions is None for row in rows)
        found["ids and positions equal"] = f"{same} of {len(rows)}"
        found["largest gap, nats"] = max(row.largest for row in rows)
        assert all(row.agrees(1e-5) and row.positions_seen for row in rows), rows


def answers() -> None:
    """The evaluation's two engines, PyTorch and vLLM, on the same clips, and through `eval mer-unibench`."""
    clips, how = read_manifest(MANIFEST), Decoding(max_tokens=40, seed=0)
    with check(NAME, "`EngineModel` and `Checkpoint`, greedy, slow and fast") as found:
        ours, theirs = (
            [(one.id, one.mode, one.completion, one.labels) for one in model.answer(clips, list(ThinkingMode))]
            for model in (Checkpoint(THINKER, builtin(), how), EngineModel(THINKER, builtin(), how, 64, {}, SHORT))
        )
        found["equal answers"] = f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"
        assert ours == theirs
    with check(NAME, "`mer-r1 eval mer-unibench --engine vllm` and torch: nine made sets") as found:
        for engine in ("torch", "vllm"):
            limit = ["--max-length", "512"] if engine == "vllm" else []
            command("eval", "mer-unibench", "--model", THINKER, "--data", str(DATA), "--sentiment",
                    "rules", "--engine", engine, "--max-new-tokens", "40", "--allow-pickle", "--out", str(OUT / engine),
                    "--resamples", "10", *limit)  # fmt: skip
        ours, theirs = (answered(OUT / engine) for engine in ("torch", "vllm"))
        found["equal answers"] = f"{sum(ours[key] == theirs.get(key) for key in ours)} of {len(ours)}"
        assert ours == theirs


SHORT = {"max_model_len": 512}


def scored(confidences: str) -> None:
    """Two steps of RL, colocated: what the engine says is what the policy says, and the weights arrive."""
    with check(NAME, f"`mer-r1 rl rollouts=vllm`, 2 steps, vllm_confidences={confidences}") as found:
        lines, differences = rl(f"rl-{confidences}", [f"vllm_confidences={confidences}"])
        found["gap of each step, nats"] = gaps(lines)
        found["largest difference of confidences from the policy's"] = max(differences)
        assert all(line["sampling/sampling_logp_difference/mean"] < 5e-3 for line in lines)
        assert max(differences) < 1e-5


def unsynchronised() -> None:
    """The control: without synchronised weights the logged gap is large."""
    with check(NAME, "the same without sending weights (control)") as found:
        sync = colocated.VLLMGeneration.sync_weights
        colocated.VLLMGeneration.sync_weights = lambda self: None
        try:
            # The engine has loaded the initial weights itself.
            lines, _ = rl("rl-control", ["learning_rate=1e-2"])
        finally:
            colocated.VLLMGeneration.sync_weights = sync
        found["gap of each step, nats"] = gaps(lines)
        assert lines[-1]["sampling/sampling_logp_difference/mean"] > 0.02


def adapters() -> None:
    """LoRA: adapters arrive merged."""
    with check(NAME, "`mer-r1 rl rollouts=vllm lora_rank=4`, 2 steps") as found:
        lines, _ = rl("rl-lora", ["lora_rank=4", "learning_rate=1e-2"])
        found["gap of each step, nats"] = gaps(lines)
        assert all(line["sampling/sampling_logp_difference/mean"] < 5e-3 for line in lines)


def rl(name: str, settings: list[str]) -> tuple[list[dict], list[float]]:
    """Lines of the log of two steps, and how far the confidences that were used are from those of `rescore`."""
    from mer_r1.rl.vllm.rollouts import VllmRollouts

    pairs = []
    plain = VllmRollouts._rollout

    def checked(self, clips, omni, prompts, group, sampling, tokens=None, fast=False, prefilled="", model=None):
        made = plain(self, clips, omni, prompts, group, sampling, tokens, fast, prefilled, model)
        if tokens is not None and made.answers:
            slow, _ = rescore(omni, prompts, made.answers, made.completion_ids, tokens, fast, model)
            pairs.append((slow, made))  # the policy reads later, in the forward of the loss
        return made

    VllmRollouts._rollout = checked
    out = OUT / name
    paths = [f"manifest={MANIFEST}", f"model={THINKER}", f"output_dir={out}", f"features_dir={OUT / 'features'}"]
    try:
        run_rl(read_recipe(RLRecipe, RECIPE, [*QUIET, *STEP, *paths, *settings]))
    finally:
        VllmRollouts._rollout = plain
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    differences = [float((slow - made.slow).abs().max()) if len(slow) else 0.0 for slow, made in pairs]
    return [line for line in lines if "loss" in line], differences


def served() -> None:
    """A served whole checkpoint, asked by `--model-url`, and as RL asks a server."""
    with server() as url:
        with check(NAME, "`mer-r1 eval mer-unibench --model-url`: video and audio over HTTP, slow and fast") as found:
            command("eval", "mer-unibench", "--model", "whole", "--model-url", f"{url}/v1", "--data",
                    str(DATA), "--sets", "meld", "--sentiment", "rules", "--max-new-tokens", "40",
                    "--allow-pickle", "--out", str(OUT / "served"), "--resamples", "10")  # fmt: skip
            found["answered"] = f"{sum(text is not None for text in answered(OUT / 'served').values())} of 6"
            assert all(text is not None for text in answered(OUT / "served").values())
        with check(NAME, "what RL asks of a server: PNG frames, float audio, tokens back") as found:
            omni = load(THINKER)
            clips = read_manifest(MANIFEST)
            prompts = [encode_prompt(omni, question(clip.subtitle), encode_clip(omni, clip)) for clip in clips]
            requests = [request_of(omni, prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]
            asked = [Asked(clip, request) for clip, request in zip(clips, requests, strict=True)]
            sampled = Served(url).sample(asked, 2, Sampling(24, 1.0, seed=0), omni)
            same = sum(p.input_ids.tolist() == ids for p, (ids, _) in zip(prompts, sampled, strict=True))
            found["ids equal"] = f"{same} of {len(prompts)}"
            found["largest gap, nats"] = largest_gap(omni, prompts, sampled)
            assert same == len(prompts)
            assert found["largest gap, nats"] < 5e-3  # forbidden tokens are left out of vLLM's sum


def largest_gap(omni, prompts, sampled) -> float:
    """Between the engine's log-probabilities and the policy's, with the tokens left out that must not be sampled."""
    from mer_r1.model.prompts import collate
    from mer_r1.model.tower_outputs import media_embedded

    gaps = []
    for prompt, (_, completions) in zip(prompts, sampled, strict=True):
        for one in completions:
            batch = collate([prompt], [one.ids], omni.tokenizer.pad_token_id)
            media, _ = batch.pop("media"), batch.pop("labels")
            with torch.no_grad(), media_embedded(omni.model, media):
                logits = omni.model(**batch).logits[0, len(prompt.input_ids) - 1 : -1]
            logits[:, omni.forbidden_ids] = -torch.inf
            logps = logits.log_softmax(-1)[range(len(one.ids)), one.ids]
            gaps.append(float((logps - torch.tensor(one.logps)).abs().max()))
    return max(gaps)


@contextmanager
def server():
    """VLLM's server in a process of its own (`vllm serve` of this build does not find its own version)."""
    words = ["--model", WHOLE, "--served-model-name", "whole", "--dtype", "float32", "--port", str(PORT)]
    words += ["--max-model-len", "512", "--logprobs-mode", "processed_logprobs"]
    words += ["--limit-mm-per-prompt", '{"audio": 1, "video": 1}']
    log = (OUT / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", "import vllm_cpu, runpy; runpy.run_module('vllm.entrypoints.openai.api_server', "
         "run_name='__main__')", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended: {Path(log.name).read_text()[-1500:]}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def command(*words: str) -> None:
    """Run `mer-r1` in this process. Status 1 is no failure: a tiny model gives answers that official scores refuse."""
    sys.argv = ["mer-r1", *words]
    os.environ.setdefault("OPENAI_API_KEY", "none")
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code not in (None, 0, 1):
            raise RuntimeError(f"mer-r1 {' '.join(words)}: status {stop.code}") from None


def answered(folder: Path) -> dict:
    """Completions of a folder of records by set, clip and mode."""
    found = {}
    for file in sorted(folder.rglob("records.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[file.parent.name, row["id"], row["mode"]] = None if row.get("error") else row["completion"]
    return found


if __name__ == "__main__":
    main()
