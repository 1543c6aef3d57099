"""What one RL step costs: calibration on or off, and ours against the straightforward way.

Run: python benchmarks/rl_step.py

Three variants of one step (sampling, scoring, reference, training) take turns in one run, on the same tiny model,
clips and completions, and only ratios are reported:

  ad       ours without calibration
  mer-r1   ours with calibration: slow confidence from the sampling pass, fast confidence on the prompts' KV cache
  plain    the towers run for every rollout in every pass, every rollout prefills its own prompt, and the fast
           confidence is one more forward per rollout over prompt and answer

The prediction counts multiply-adds: tokens through the language model (training three times a forward), attention over
the context, the head where logits are made, and the towers' tokens. Completions are scripted (the draw is computed and
then overruled), so that all variants process the same lengths.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny_world import WORDS, media

from mer_r1 import rollout as rollout_module
from mer_r1.anchors import answer_tokens
from mer_r1.calibration import Method, category_probabilities
from mer_r1.config import RLRecipe
from mer_r1.inputs import collate, embed, encode_media, encode_prompt, media_tensors
from mer_r1.model import load, tiny
from mer_r1.rollout import Sampling
from mer_r1.taxonomy import builtin
from mer_r1.thinking import FAST_PREFILL, format_completion, question
from mer_r1.trainer import MERR1Trainer

PROMPTS, GROUP = 8, 8
FILLER = "The lips curl up, the brows are low, the voice is bright and loud and the words complain about the day."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--prompt-tokens", type=int, nargs="+", default=[0, 400], help="extra prompt tokens: short, long"
    )
    parser.add_argument("--completion-tokens", type=int, default=56)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    figures = [measure(extra, args.completion_tokens, args.rounds) for extra in args.prompt_tokens]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(extra: int, completion_tokens: int, rounds: int) -> dict:
    forms = sorted(builtin().forms)
    omni = tiny([format_completion(FILLER, [word]) for word in forms] + [question(FILLER, "short")] * 50)
    folder = tempfile.mkdtemp()
    omni.save(folder)
    script = scripted(omni, completion_tokens)
    variants = {name: Variant(name, folder, extra, script) for name in ("ad", "mer-r1", "plain")}
    for variant in variants.values():
        variant.step()
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            began = time.perf_counter()
            variant.step()
            seconds[name].append(time.perf_counter() - began)
    lengths = variants["mer-r1"].lengths(completion_tokens)
    predicted = prediction(omni, lengths)
    calibration = ratios(seconds["mer-r1"], seconds["ad"])
    gain = ratios(seconds["plain"], seconds["mer-r1"])
    print(f"\n{lengths}, {PROMPTS} prompts x {GROUP} rollouts, {rounds} rounds, {torch.get_num_threads()} threads")
    print(f"  step time of mer-r1: {statistics.median(seconds['mer-r1']):.3f} s (median)")
    print(f"  calibration on / off: {spread(calibration)}   (at most 1.10)")
    print(f"  plain / ours:         {spread(gain)}   predicted {predicted:.2f}")
    share = statistics.median(gain) / predicted
    saved = (1 - 1 / statistics.median(gain)) / (1 - 1 / predicted)
    print(f"  measured / predicted ratio: {share:.2f}; share of the predicted saving: {saved:.2f}   (at least 0.80)")
    return {"lengths": lengths, "calibration": calibration, "gain": gain, "predicted": predicted, "seconds": seconds}


class Variant:
    """One trainer and its step on a fixed batch."""

    def __init__(self, name: str, folder: str, extra: int, script: list[list[int]]) -> None:
        omni = load(folder)
        omni.freeze_towers()
        raw = [media_tensors(omni, media(3.0, index)) for index in range(PROMPTS)]
        kept = raw if name == "plain" else encode_media(omni.model, raw)
        filler = omni.tokenizer.decode((omni.tokenizer(" " + FILLER)["input_ids"] * 40)[:extra]) if extra else ""
        asked = question("I am glad to see you.", "short") + filler
        self.prompts = [encode_prompt(omni, asked, tensors) for tensors in kept]
        rows = [
            {"prompt": [{"role": "user", "content": "?"}], "labels": [WORDS[index]], "clip_index": index}
            for index in range(PROMPTS)
        ]
        recipe = RLRecipe(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=len(script[0]),
            save_strategy="no",
        )
        kind = PlainTrainer if name == "plain" else MERR1Trainer
        method = Method(name="ad" if name == "ad" else "mer-r1")
        self.trainer = kind(omni, rows, self.prompts.__getitem__, method, builtin(), recipe)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = [dict(rows[index]) for index in range(PROMPTS) for _ in range(GROUP)]
        self.script = script

    def step(self) -> None:
        with Script(self.script):
            self.trainer.model.train()
            output = self.trainer._generate_and_score_completions(self.batch)
            loss = self.trainer._compute_loss(self.trainer.model, output)
        loss.backward()
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def lengths(self, completion_tokens: int) -> dict[str, int]:
        prompt = self.prompts[0]
        answer = answer_tokens(self.script[0], self.trainer.omni.tokenizer)
        head = len(self.trainer.omni.tokenizer(FAST_PREFILL)["input_ids"])
        raw = media_tensors(self.trainer.omni, media(3.0, 0))
        return {
            "prompt": len(prompt.input_ids),
            "completion": completion_tokens,
            "fast": head + answer.anchors[-1] - answer.start,
            "patches": len(raw["pixel_values_videos"]),
            "mel_frames": raw["input_features"].shape[-1],
        }


class PlainTrainer(MERR1Trainer):
    """The straightforward way: nothing is shared between the rollouts of a prompt, nothing is kept between passes."""

    def _sample(self, prompts: list, trainer: object) -> dict:
        every = [self.prompt_of(index) for index in self._clips]  # raw media: the towers run in every pass
        result = rollout_module.rollout(
            self.omni, every, 1, Sampling(self.max_completion_length), tokens=self.category_tokens, model=self.model
        )
        answers = [answer_tokens(ids, self.omni.tokenizer) for ids in result.completion_ids]
        asked = [rollout_module.fast_prompt(self.omni, prompt) for prompt in every]
        texts = [ids[a.start : a.anchors[-1]] for ids, a in zip(result.completion_ids, answers, strict=True)]
        batch = collate(asked, texts, self.omni.tokenizer.pad_token_id)
        with torch.no_grad():
            output = self.model.model(
                inputs_embeds=embed(self.model, batch["input_ids"], batch["media"]),
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                use_cache=False,
            )
            width = batch["input_ids"].shape[1] - max(len(text) for text in texts)
            index = [(row, width + at - a.start - 1) for row, a in enumerate(answers) for at in a.anchors]
            rows, columns = (torch.tensor(part) for part in zip(*index, strict=True))
            logits = self.model.get_output_embeddings()(output.last_hidden_state[rows, columns])
            result.fast = category_probabilities(logits, self.category_tokens)
        self._rollouts = result
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
        self.draw = rollout_module._draw
        rollout_module._draw = self

    def __exit__(self, *_: object) -> None:
        rollout_module._draw = self.draw

    def __call__(self, logits, *args):
        _, logp = self.draw(logits, *args)
        tokens = [completion[self.position] for completion in self.completions]
        self.position += 1
        return torch.tensor(tokens), logp


def scripted(omni, length: int) -> list[list[int]]:
    """64 completions of exactly this many tokens, each a reasoning and an answer of two words."""
    made = []
    for index in range(PROMPTS * GROUP):
        words = [WORDS[index % 8], WORDS[(index + 3) % 8]]
        answer = omni.tokenizer(f" </think><answer> {', '.join(words)} </answer>")["input_ids"]
        answer.append(omni.tokenizer.eos_token_id)
        head = omni.tokenizer("<think>")["input_ids"]
        filler = omni.tokenizer(" " + FILLER)["input_ids"] * 9
        made.append(head + filler[: length - len(head) - len(answer)] + answer)
    return made


def prediction(omni, lengths: dict[str, int]) -> float:
    """Multiply-adds of a plain step over those of ours."""
    model = omni.model.model
    text = omni.model.config.text_config
    layers = sum(weight.numel() for weight in model.language_model.layers.parameters())
    head = text.vocab_size * text.hidden_size
    attention = 2 * text.num_hidden_layers * text.hidden_size

    def forward(new: int, past: int = 0, heads: int = 0) -> float:
        return new * (layers + attention * (past + new / 2)) + heads * head

    prompt, completion, fast = lengths["prompt"], lengths["completion"], lengths["fast"]
    rollouts = PROMPTS * GROUP
    decode = rollouts * forward(completion, prompt, completion)
    whole = rollouts * forward(prompt + completion, 0, prompt + completion)  # on a CPU the head scores every position
    common = decode + (1 + 3) * whole
    ours = PROMPTS * forward(prompt) + rollouts * forward(fast, prompt) + common
    blocks = sum(weight.numel() for weight in model.visual.blocks.parameters())
    merger = sum(weight.numel() for weight in model.visual.merger.parameters())
    patch = model.visual.patch_embed.proj.weight.numel()
    audio = sum(weight.numel() for weight in model.audio_tower.parameters())
    towers = lengths["patches"] * (patch + blocks + merger / 4) + lengths["mel_frames"] / 2 * audio
    passes = 4  # sampling, fast confidence, reference, training
    plain = rollouts * (passes * towers + forward(prompt) + forward(prompt + fast)) + common
    return plain / ours


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} (of {len(values)}: {min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
