"""Cost of one RL step against a straightforward implementation, and the contribution of each optimisation.

Run: python perf/rl_step.py                      the demo's lengths, and prompts of 1,000 tokens, on a CPU
     python perf/rl_step.py --size 7b            7B-shaped random weights, bf16, LoRA, on one GPU

One trainer on one model runs the same step (sampling, scoring, reference, training) in several variants, in turn:

  ours            prompts shared in sampling and training, features cached, fast confidence on the prompts' KV cache
  no packing      the training and reference passes compute every rollout's prompt
  no features     the towers run in every pass
  masks           packed rows attend under a mask over all pairs of tokens, in the training and reference passes
                  (as ours does where they are short)
  no calibration  without confidences (their cost is ours / no calibration)
  straightforward no sharing and no caching: towers and prompt for every rollout in every pass, and the fast confidence
                  as one more forward pass per rollout over prompt and answer

Prints ratios with their range over the rounds, beside the ratios of multiply-adds (`step_arithmetic`). Completions are
scripted (sampled tokens are replaced), so all variants process the same lengths.
"""

import argparse
import ctypes
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from step_arithmetic import Lengths, Way, count, of_model
from tiny_world import WORDS, media

from mer_r1.emotions.thinking import FAST_PREFILL, format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.model import generation
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import collate, encode_prompt, media_tensors
from mer_r1.model.shared_prefix import readings
from mer_r1.model.shared_prefix.attention import as_mask, packed_inputs, visible
from mer_r1.model.shared_prefix.continuation import backbone
from mer_r1.model.tiny import TinyConfig, tiny
from mer_r1.model.tower_outputs import embed, encode_media
from mer_r1.rl import rollout as rollout_module
from mer_r1.rl.anchors import answer_tokens
from mer_r1.rl.calibration import category_probabilities
from mer_r1.rl.method import Method
from mer_r1.rl.trainer import MERR1Trainer
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.stage import LANGUAGE_MODEL_LAYERS

FILLER = "The lips curl up, the brows are low, the voice is bright and loud and the words complain about the day."
WAYS = {
    "ours": Way(),
    "no packing": Way(packing=False),
    "no features": Way(features=False),
    "masks": Way(masked=True),
    "no calibration": Way(calibration=False),
    "straightforward": Way(packing=False, features=False, straight=True),
}
COMPARED = Method(calibration="difference")
"""The calibration that is timed: of the formulations that read fast thinking at every word."""
SHAPE_7B = TinyConfig(hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, intermediate_size=18944)
VOCABULARY_7B = 152064
GIB = 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="+", help="prompts a step, for each prompt length")
    parser.add_argument("--group", type=int, help="rollouts of a prompt")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", help="prompt lengths; 0 is the demo's own")
    parser.add_argument("--completion-tokens", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those compared with ours")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2, ...")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's CPU seconds: on a busy machine")
    parser.add_argument("--peak-tflops", type=float, help="of the machine, to give the model FLOPs utilisation")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    large = args.size == "7b"
    args.prompts = args.prompts or ([2] if large else [8, 2])
    args.group = args.group or (4 if large else 8)
    args.prompt_tokens = args.prompt_tokens or ([1500] if large else [0, 1000])
    args.completion_tokens = args.completion_tokens or (300 if large else 56)
    prompts = args.prompts * len(args.prompt_tokens) if len(args.prompts) == 1 else args.prompts
    figures = [measure(args, number, tokens) for number, tokens in zip(prompts, args.prompt_tokens, strict=True)]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(args, prompts: int, prompt_tokens: int) -> dict:
    bench = Bench(args, prompts, prompt_tokens)
    model = of_model(bench.omni, bench.lengths, not bench.cuda, bench.large, bench.large)
    counted = {name: count(model, bench.lengths, way) for name, way in WAYS.items()}
    names = ["ours", *(name for name in args.ways if name != "ours")]
    seconds = {name: {part: [] for part in ("sampling", "training", "step")} for name in names}
    memory = {}
    for name in names:
        memory[name] = bench.memory(WAYS[name])  # also warms up
    for number in range(args.rounds):
        for name in random.Random(number).sample(names, len(names)):  # no way always follows the same other
            for part, value in bench.step(WAYS[name]).items():
                seconds[name][part].append(value)
    kind = "CPU seconds" if args.cpu_time else "seconds"
    print(f"\n{bench.lengths}\n{args.rounds} rounds in turn, {kind}, {bench.machine()}")
    median = {part: statistics.median(values) for part, values in seconds["ours"].items()}
    print("ours: " + ", ".join(f"{part} {value:.3f} s" for part, value in median.items()) + f"; peak {memory['ours']}")
    figures = {"lengths": vars(bench.lengths), "seconds": seconds, "memory": memory, "ratios": {}}
    # What costs something is divided by what goes without it, what saves something the other way round.
    pairs = [("ours", name) if name == "no calibration" else (name, "ours") for name in names[1:]]
    if {"straightforward", "no packing"} <= set(names):  # what sampling alone saves: neither shares prompts in training
        pairs.append(("straightforward", "no packing"))
    for above, below in pairs:
        ratios = figures["ratios"][f"{above} / {below}"] = {}
        for part in ("training", "step"):
            found = [x / y for x, y in zip(seconds[above][part], seconds[below][part], strict=True)]
            predicted = counted[above][part] / counted[below][part]
            ratios[part] = {"measured": found, "predicted": predicted}
            share = f", {statistics.median(found) / predicted:.0%} of it" if predicted > 1.2 else ""
            print(f"  {f'{above} / {below}':<30}{part:<9}{spread(found)}   predicted {predicted:.2f}{share}")
    print("  peak memory: " + ", ".join(f"{name} {size}" for name, size in memory.items()))
    if args.peak_tflops:
        utilisation(bench, counted["ours"], median, args.peak_tflops)
    return figures


def utilisation(bench: "Bench", counted: dict, median: dict, peak: float) -> None:
    """Tokens per second, and needed FLOPs against what the machine could do."""
    size = bench.lengths
    rollouts = size.prompts * size.group
    print(f"  sampling {rollouts * size.completion / median['sampling']:.0f} tokens/s")
    trained = rollouts * (size.prompt + size.completion)
    print(f"  training {trained / median['training']:.0f} tokens/s (a prompt counted for each of its rollouts)")
    for part in ("training", "step"):
        print(f"  {part}: {2 * counted[part] / median[part] / 1e12 / peak:.1%} of {peak:.0f} TFLOPS")


class Bench:
    """One trainer, and its step on a fixed batch in any way."""

    def __init__(self, args, prompts: int, prompt_tokens: int) -> None:
        self.large, self.cuda = args.size == "7b", args.size == "7b" and torch.cuda.is_available()
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self._kept = tempfile.TemporaryDirectory()  # gone with the bench
        self.folder = self._kept.name
        self.omni = build(self.large, self.folder, "cuda" if self.cuda else "cpu", args.attention)
        self.script = scripted(self.omni, prompts * args.group, args.completion_tokens)
        raw = [media_tensors(self.omni, media(3.0, index)) for index in range(prompts)]
        kept = encode_media(self.omni.model, raw)
        asked = question("I am glad to see you.", "short")
        if prompt_tokens:
            missing = prompt_tokens - len(encode_prompt(self.omni, asked, kept[0]).input_ids)
            asked += self.omni.tokenizer.decode((self.omni.tokenizer(" " + FILLER)["input_ids"] * 99)[:missing])
        self.prompts = {True: [encode_prompt(self.omni, asked, tensors) for tensors in kept]}
        self.prompts[False] = [encode_prompt(self.omni, asked, tensors) for tensors in raw]
        rows = [
            {"prompt": [{"role": "user", "content": "?"}], "labels": [WORDS[index % 8]], "clip_index": index}
            for index in range(prompts)
        ]
        self.trainer = SwitchedTrainer(
            self.omni,
            rows,
            self.prompts[True].__getitem__,
            COMPARED,
            builtin(),
            self.recipe(args, prompts),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_MODEL_LAYERS) if self.large else None,
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = [dict(row) for row in rows for _ in range(args.group)]
        self.lengths = self.measured_lengths(prompts, args.group, raw[0])

    def recipe(self, args, prompts: int) -> RLRecipe:
        return RLRecipe(
            output_dir=self.folder,
            use_cpu=not self.cuda,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=prompts * args.group,
            num_generations=args.group,
            max_completion_length=args.completion_tokens,
            gradient_checkpointing=self.large,
            save_strategy="no",
        )

    def measured_lengths(self, prompts: int, group: int, raw: dict) -> Lengths:
        answer = answer_tokens(self.script[0], self.omni.tokenizer)
        head = len(self.omni.tokenizer(FAST_PREFILL)["input_ids"])
        return Lengths(
            prompts=prompts,
            group=group,
            prompt=len(self.prompts[True][0].input_ids),
            completion=len(self.script[0]),
            fast=head + answer.anchors[-1] - answer.start,
            patches=len(raw["pixel_values_videos"]),
            mel_frames=raw["input_features"].shape[-1],
        )

    def step(self, way: Way) -> dict[str, float]:
        """Seconds of sampling (with scoring and reference), of the training pass, and of all."""
        trainer = self.trainer
        trainer.straight, trainer._shared = way.straight, way.packing
        trainer.method = COMPARED if way.calibration else Method("ad")
        trainer.prompt_of = self.prompts[way.features].__getitem__
        readings.packed_inputs = masked_inputs if way.masked else packed_inputs
        trainer.model.train()
        times = [self.now()]
        with Script(self.script):
            output = trainer._generate_and_score_completions(self.batch)
        times.append(self.now())
        trainer._compute_loss(trainer.model, output).backward()
        times.append(self.now())
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        times.append(self.now())
        return {"sampling": times[1] - times[0], "training": times[2] - times[1], "step": times[3] - times[0]}

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self.clock()

    def memory(self, way: Way) -> str:
        """Peak of a step: of the GPU in all, on Linux without one what the process took beyond what it held before."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.step(way)
            return f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB"
        status = Path("/proc/self/status")
        if not status.is_file():
            self.step(way)
            return "unknown"
        self.step(way)
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what earlier steps left is no room for this one
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
        before = kilobytes(status, "VmRSS")
        self.step(way)
        return f"{(kilobytes(status, 'VmHWM') - before) / 1024:.0f} MiB"

    def machine(self) -> str:
        return torch.cuda.get_device_name() if self.cuda else f"CPU, {torch.get_num_threads()} threads"


def build(large: bool, folder: str, device: str, attention: str):
    """The tiny policy, or one of the 7B's sizes with its vocabulary; random weights."""
    texts = [format_completion(FILLER, [word]) for word in sorted(builtin().forms)]
    texts += [question(FILLER, "short")] * 50
    if not large:
        tiny(texts).save(folder)
        omni = load(folder)  # the reference is reloaded from there
    else:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            omni = tiny(texts, SHAPE_7B)
            omni.model.resize_token_embeddings(VOCABULARY_7B, mean_resizing=False)
        torch.set_default_dtype(torch.float32)
    omni.model.set_attn_implementation({"text_config": attention})
    omni.freeze_towers()
    return omni


def masked_inputs(model, batch: dict) -> dict:
    """A packed batch for sdpa with a mask (B, 1, L, L) instead of segments."""
    kept = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    return kept | {"attention_mask": as_mask(visible(batch["branches"]), "sdpa", model.dtype)}


def kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1])


class SwitchedTrainer(MERR1Trainer):
    """Ours, or with `straight` the straightforward sampling: nothing shared between the rollouts of a prompt."""

    straight = False

    def _sample(self, prompts: list, trainer: object) -> dict:
        if not self.straight:
            return super()._sample(prompts, trainer)
        model = self.accelerator.unwrap_model(self.model)
        every = [self.prompt_of(index) for index in self.step.clips]  # raw media: the towers run in every pass
        result = rollout_module.rollout(
            self.omni, every, 1, Sampling(self.max_completion_length), tokens=self.categories[0], model=model
        )
        answers = [answer_tokens(ids, self.omni.tokenizer) for ids in result.completion_ids]
        asked = [rollout_module.fast_prompt(self.omni, prompt) for prompt in every]
        texts = [ids[a.start : a.anchors[-1]] for ids, a in zip(result.completion_ids, answers, strict=True)]
        batch = collate(asked, texts, self.omni.tokenizer.pad_token_id)
        with torch.no_grad():
            output = backbone(model)(
                inputs_embeds=embed(self.omni.model, batch["input_ids"].to(model.device), batch["media"]),
                attention_mask=batch["attention_mask"].to(model.device),
                position_ids=batch["position_ids"].to(model.device),
                use_cache=False,
            )
            width = batch["input_ids"].shape[1] - max(len(text) for text in texts)
            index = [(row, width + at - a.start - 1) for row, a in enumerate(answers) for at in a.anchors]
            rows, columns = (torch.tensor(part) for part in zip(*index, strict=True))
            logits = model.get_output_embeddings()(output.last_hidden_state[rows, columns])
            result.fast = category_probabilities(logits, self.categories[0])
        self.step.rollouts = result
        return {
            "prompt_ids": [prompt.input_ids.tolist() for prompt in every],
            "completion_ids": result.completion_ids,
            "logprobs": result.logps,
        }


class Script:
    """Overrules the sampled tokens, after they were drawn."""

    def __init__(self, completions: list[list[int]]) -> None:
        self.completions, self.position = completions, 0

    def __enter__(self) -> None:
        self.draw = generation.draw
        generation.draw = self

    def __exit__(self, *_: object) -> None:
        generation.draw = self.draw

    def __call__(self, logits, *args):
        _, logp = self.draw(logits, *args)
        tokens = [completion[self.position] for completion in self.completions]
        self.position += 1
        return torch.tensor(tokens, device=logp.device), logp


def scripted(omni, number: int, length: int) -> list[list[int]]:
    """Completions of exactly this many tokens, each a reasoning and an answer of two words."""
    made = []
    for index in range(number):
        words = [WORDS[index % 8], WORDS[(index + 3) % 8]]
        answer = omni.tokenizer(f" </think><answer> {', '.join(words)} </answer>")["input_ids"]
        answer.append(omni.tokenizer.eos_token_id)
        head = omni.tokenizer("<think>")["input_ids"]
        filler = omni.tokenizer(" " + FILLER)["input_ids"] * 40
        made.append(head + filler[: length - len(head) - len(answer)] + answer)
    return made


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (of {len(values)}: {min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
