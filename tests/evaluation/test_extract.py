"""Labels and sentiments from texts: exactly the reference where it is followed, and nothing scored by accident."""

import json
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import Call, Server, hangs_up, rubbish, said, status

from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.labels.extract import (
    LABELS_INSTRUCTION,
    SENTIMENT_INSTRUCTION,
    Extracted,
    extract_labels,
    extract_sentiments,
    label_field,
    label_string,
    labels_by_rule,
    sentiments_by_rule,
)
from mer_r1.evaluation.labels.files import label_rows, read_predictions, sentiment_rows, summarise, write_rows
from mer_r1.evaluation.labels.replies import clean_reply, list_parse_row, llm_reply_row, read_labels, read_sentiment
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, Reply
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.responses import Retries

QUICK = Retries(attempts=2, first_wait=0, longest_wait=0)
PROSE = "The woman laughs, so she may well be happy."


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


class Script:
    """A language model that replies by a table: what the last turn contains -> what it says."""

    name = "script"

    def __init__(self, *replies: tuple[str, str | None]) -> None:
        self.replies = replies
        self.asked: list[ChatPrompt] = []

    def complete(self, prompts, version, on_reply=None):
        self.asked += prompts
        found = []
        for index, prompt in enumerate(prompts):
            last = prompt.messages[-1]["content"]
            text = next(reply for part, reply in self.replies if part in last)
            found.append(Reply(text) if text is not None else Reply(None, "no reply in time"))
            if on_reply:
                on_reply(index, found[-1])
        return found


# --- the reference's tables -------------------------------------------------------------------------------------------


def test_every_row_of_the_reference_reply_table(shared) -> None:
    rows = json.loads((shared / "benchmarks/reference/llm_postprocess.json").read_text(encoding="utf-8"))
    assert len(rows) == 14
    assert [llm_reply_row(row["in"]) for row in rows] == rows


def test_every_row_of_the_reference_list_table(shared) -> None:
    rows = json.loads((shared / "benchmarks/reference/list_parse.json").read_text(encoding="utf-8"))
    assert len(rows) == 28
    assert [list_parse_row(row["in"]) for row in rows] == rows


def test_list_rows_by_the_specification() -> None:
    assert list_parse_row("[")["out"] == "EXC IndexError"
    assert list_parse_row(None)["out"] == []
    assert list_parse_row(["[happy", "sad"])["out"] == ["[happy", "sad"]
    with pytest.raises(UserError, match="got 3"):
        list_parse_row(3)
    with pytest.raises(UserError, match="expected a reply as a text"):
        llm_reply_row(["happy"])


@pytest.mark.parametrize(
    ("reply", "cleaned"),
    [
        ("输入输出翻译x", "x"),  # each prefix once, in this order
        ("输出输入x", "输入x"),  # 输入 had its turn before 输出 was gone
        ("翻译让我们来翻译一下：[a]", "[a]"),
        ("outputOutput: [a]", "[a]"),
        ("Outputoutput: [a]", "output: [a]"),
        (":：[a]", "[a]"),
        ("：:[a]", ":[a]"),  # the ASCII colon goes first
        ("::[a]", ":[a]"),
        ("[a,\r\n b]", "[a,\r b]"),  # line feeds only
        ("  \n ", ""),
        ("Input", ""),
    ],
)
def test_replies_are_cleaned_in_the_order_of_the_specification(reply, cleaned) -> None:
    assert clean_reply(reply) == cleaned


@given(st.text())
def test_cleaning_takes_away_only_at_the_ends_and_line_feeds(reply) -> None:
    cleaned = clean_reply(reply)
    assert reply.replace("\n", "").rstrip().endswith(cleaned)
    assert cleaned == cleaned.strip()


# --- by rule ----------------------------------------------------------------------------------------------------------


def test_the_words_of_the_answer_are_the_labels() -> None:
    assert labels_by_rule("<think> A smile. </think><answer> Happy, ill at ease </answer>") == Extracted(
        "[happy, ill at ease]", "answer"
    )
    assert labels_by_rule("<think></think><answer> sad") == Extracted("[sad]", "answer")
    assert labels_by_rule("reasoning, then sad</answer>") == Extracted("[reasoning, then sad]", "answer")


def test_an_empty_answer_and_an_empty_completion_are_told_apart() -> None:
    assert labels_by_rule("<think></think><answer>  </answer>") == Extracted("[]", "answer")
    assert labels_by_rule(" \n") == Extracted("[]", "empty")
    assert labels_by_rule("<think></think>") == Extracted("[]", "empty")


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "<think> She smiles, so she is happy.",
        "<think> She smiles. </think> She is happy.",
        "<answer> I would say that she is rather happy here </answer>",
    ],
)
def test_prose_needs_a_reader(text) -> None:
    assert labels_by_rule(text) is None
    (found,) = extract_labels([text], None)
    assert found.value is None
    assert found.error is not None


LABELS = st.lists(st.text("abcdefghij", min_size=1, max_size=8).filter("and".__ne__), min_size=1, unique=True)


@given(LABELS)
def test_what_was_answered_in_form_comes_back(labels) -> None:
    found = labels_by_rule(format_completion("Because.", labels))
    assert found is not None
    assert found.labels == labels


# --- by a language model ----------------------------------------------------------------------------------------------


def test_only_prose_is_asked_about_and_every_rule_is_in_the_instruction() -> None:
    model = Script(("woman", "[happy]"))
    found = extract_labels(["<answer> sad </answer>", f"<think> {PROSE}", ""], model)
    assert [(entry.value, entry.source) for entry in found] == [
        ("[sad]", "answer"),
        ("[happy]", "llm"),
        ("[]", "empty"),
    ]
    assert len(model.asked) == 1
    (turn,) = model.asked[0].messages
    assert turn["role"] == "user"
    assert turn["content"] == f"{LABELS_INSTRUCTION}{PROSE}\nList:"
    # Section 3 of the specification, rule by rule.
    for rule in ("expert", "clues", "main person", "commas", "clear", "square brackets", "empty list"):
        assert rule in LABELS_INSTRUCTION
    assert "List: []" in LABELS_INSTRUCTION
    assert "List: [happy, sad, angry]" in LABELS_INSTRUCTION
    for rule in ("expert", "words", "positive, negative or neutral", "most likely", "without any analysis"):
        assert rule in SENTIMENT_INSTRUCTION
    assert "[joyful]\nSentiment: positive" in SENTIMENT_INSTRUCTION
    assert "[]\nSentiment: neutral" in SENTIMENT_INSTRUCTION


def test_the_instructions_own_examples_earn_their_labels() -> None:
    for example in LABELS_INSTRUCTION.split("List: ")[1:]:
        value, problem = read_labels(example.split("\n")[0], builtin())
        assert value is not None
        assert problem is None


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("She is happy.", "no list"),
        ("[happy", "no list"),
        ("[happy], [sad]", "no list"),
        ("[" + "happy" * 20 + "]", "a sentence"),
        ("[高兴, 悲伤]", "not English"),
        ("[радость]", "not English"),
        ("[she seems to be very happy]", "a sentence"),
        ("<html>", "no list"),
    ],
)
def test_an_unusable_reply_is_sent_back_once_with_the_reason(reply, problem) -> None:
    willing = Script(("cannot be used", "[happy]"), ("woman", reply))
    assert extract_labels([PROSE], willing)[0] == Extracted("[happy]", "llm", "[happy]")
    conversation = willing.asked[1].messages
    assert [turn["role"] for turn in conversation] == ["user", "assistant", "user"]
    assert conversation[1]["content"] == reply
    assert problem in conversation[2]["content"]

    stubborn = Script(("", reply))
    (found,) = extract_labels([PROSE], stubborn)
    assert found.value is None
    assert found.labels == []
    assert problem in str(found.error)
    assert found.reply == reply
    assert len(stubborn.asked) == 2


@pytest.mark.parametrize(
    "reply",
    [
        "Here you are: [happy, sad]. Anything else?",
        "```JSON\n[happy, sad]\n```",
        '```json\n{"emotions": ["happy", "sad"]}\n```',
        "【happy，sad】",
        "\ufeff[happy, sad]",
        "<think>[angry]? No.</think>\n\n[happy, sad]",
        "[angry]? No.\n</think>\n\n[happy, sad]",
        "<think>\n\n</think>\n\n[happy, sad]<|im_end|>",
        "<|channel|>analysis<|message|>[angry]<|end|><|start|>assistant<|channel|>final<|message|>[happy, sad]",
        "[THINK]hm[/THINK] [happy,\n sad]",
    ],
)
def test_a_list_is_read_in_any_company(reply) -> None:
    model = Script(("", reply))
    (found,) = extract_labels([PROSE], model, builtin())
    assert (found.labels, found.error, found.doubt) == (["happy", "sad"], None, None)
    assert len(model.asked) == 1


def test_a_reply_of_nothing_but_reasoning_is_an_error_for_the_reference_too() -> None:
    for checked in (True, False):
        (found,) = extract_labels([PROSE], Script(("", "<think> so [happy]")), checked=checked)
        assert (found.value, "nothing but reasoning" in str(found.error)) == (None, True)


def test_a_reply_that_was_cut_off_is_sent_back() -> None:
    class Cut(Script):
        def complete(self, prompts, version, on_reply=None):
            return [replace(reply, finish_reason="length") for reply in super().complete(prompts, version, on_reply)]

    (found,) = extract_labels([PROSE], Cut(("", "[happy]")))
    assert found.value is None
    assert "did not end properly (length)" in str(found.error)
    (taken,) = extract_labels([PROSE], Cut(("", "[happy]")), checked=False)
    assert (taken.value, taken.doubt) == ("[happy]", "it did not end properly (length)")


def test_labels_of_a_rule_that_no_wheel_knows_are_marked_each() -> None:
    (found,) = extract_labels(["<answer> sad, heureux </answer>"], None, builtin())
    assert (found.labels, found.doubt) == (["sad", "heureux"], "no wheel knows heureux")


@pytest.mark.parametrize("value", ["[joy，glad]", "happy, sad", ["happy"], "", None, "She is happy, and sad."])
def test_label_strings_stay_as_they_are(value) -> None:
    assert label_field(value) == value


def test_a_raw_answer_in_place_of_a_label_string_is_read_or_refused() -> None:
    assert label_field("<think> x </think><answer> 1. joy </answer>") == "[joy]"
    with pytest.raises(UserError, match="only a text"):
        label_field("<think> x </think> She is happy.")


def test_a_list_of_unknown_words_is_taken_with_a_doubt() -> None:
    french = Script(("", "[heureux, triste]"))
    (found,) = extract_labels([PROSE], french, builtin())
    assert (found.value, found.error) == ("[heureux, triste]", None)
    assert found.doubt == "no wheel knows any of its words"
    assert extract_labels(["<answer> heureux </answer>"], None, builtin())[0].doubt == found.doubt
    for sound in ("[]", "[neutral]", "[heureux, sad]"):
        assert extract_labels([PROSE], Script(("", sound)), builtin())[0].doubt is None
    # A correction that fails does not cost what there was.
    assert extract_labels([PROSE], Script(("cannot", None), ("", "[heureux]")), builtin())[0].value == "[heureux]"


def test_the_reference_takes_every_reply() -> None:
    model = Script(("", "Output: She is happy, and sad."))
    (found,) = extract_labels([PROSE], model, checked=False)
    assert found.value == "She is happy, and sad."
    assert found.labels == ["She is happy", "and sad."]
    assert found.doubt is not None
    assert len(model.asked) == 1
    # Where its own parser stops, there is an error instead of labels.
    assert extract_labels([PROSE], Script(("", "[")), checked=False)[0].value is None


def test_sentiments_of_a_language_model() -> None:
    model = Script(("[joyful, proud]\n", "Positive."), ("[sad]\n", "negative"), ("[odd]\n", None), ("", "well, mixed"))
    found = extract_sentiments(["[joyful, proud]", "[sad]", "[odd]", "[calm, sad]"], model)
    assert [entry.value for entry in found] == ["positive", "negative", None, None]
    assert found[2].error == "no reply in time"
    assert "none of positive, negative, neutral" in str(found[3].error)
    assert found[0].reply == "Positive."
    # The reference keeps the reply as it is, and its exact match will not know it.
    assert extract_sentiments(["[joyful, proud]"], model, checked=False)[0].value == "Positive."


def test_small_readers() -> None:
    assert read_labels("```[Happy , sad]```") == ("[Happy , sad]", None)
    assert read_sentiment("Output: 'NEUTRAL'.") == ("neutral", None)
    for wrong in ("not negative", "the answer is not negative", "positive or negative", '["positive", "negative"]'):
        assert read_sentiment(wrong)[0] is None
    for reply in ("Sentiment: Positive!", "The sentiment is **positive**.", '```json\n{"sentiment": "positive"}\n```'):
        assert read_sentiment(reply) == ("positive", None)
    assert label_string([]) == "[]"


def test_unplaced_words_are_an_error_or_a_doubt() -> None:
    nothing, some, none_given = sentiments_by_rule(["[qwerty, asdf]", "[qwerty, sad]", "[]"])
    assert (nothing.value, nothing.error) == (None, "no wheel places qwerty, asdf")
    assert (some.value, some.doubt) == ("negative", "no wheel places qwerty")
    assert (none_given.value, none_given.doubt) == ("neutral", None)


# --- files ------------------------------------------------------------------------------------------------------------


def test_prediction_files_in_every_form(tmp_path) -> None:
    lines = [
        {"id": "a", "mode": "slow", "completion": "x", "scores": {"f1": 0.5}},
        {"name": "b", "text": "y"},
        {"id": "c", "completion": None, "error": "no media"},
        {"id": "a", "mode": "fast", "completion": "z"},
        {"id": "a", "mode": "slow", "completion": "again"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "half')
    rows = read_predictions(tmp_path / "p.jsonl")
    assert [(row["id"], row.get("mode"), row["completion"]) for row in rows] == [
        ("a", "slow", "again"),
        ("b", None, "y"),
        ("c", None, None),
        ("a", "fast", "z"),
    ]
    (tmp_path / "p.json").write_text('{"a": "x"}')
    assert read_predictions(tmp_path / "p.json") == [{"id": "a", "completion": "x"}]
    numpy.savez(tmp_path / "checkpoint_30.npz", name2reason={"a": "x"})
    assert read_predictions(tmp_path / "checkpoint_30.npz", allow_pickle=True) == [{"id": "a", "completion": "x"}]
    with pytest.raises(UserError, match="pickle"):
        read_predictions(tmp_path / "checkpoint_30.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"id": "a", "completion": "x"}\n{"id": 3, "completion": "x"}\n', "line 2: expected an id"),
        ("p.jsonl", '{"id": "a"}\n', "line 1: 'a': expected its completion"),
        ("p.jsonl", '{"id": "a", "completion": "x", "mode": 1}\n', "line 1: 'a': expected its mode as text, got 1"),
        ("p.jsonl", "[1]\n", "line 1: expected a prediction"),
        ("p.jsonl", "oh\n{}\n", "line 1: expected a prediction"),
        ("p.jsonl", "\n\n", "no predictions in it"),
        ("p.json", "[1]", "expected an object"),
        ("p.json", "{", "is no JSON"),
        ("p.json", '{"a": 3}', "'a': expected a text"),
    ],
)
def test_broken_prediction_files_are_said_with_their_line(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / name)


def test_other_encodings_and_missing_files_are_one_line(tmp_path) -> None:
    (tmp_path / "p.jsonl").write_bytes('{"id": "a", "completion": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="expected UTF-8"):
        read_predictions(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl")


def test_no_row_is_lost_and_none_gets_labels_that_nobody_gave(tmp_path) -> None:
    rows = [
        {"id": "a", "completion": "<answer> happy </answer>", "kept": 1, "notes": ["no sound"]},
        {"id": "b", "completion": PROSE, "notes": "a text of another program"},
        {"id": "c", "completion": "He shouts."},
        {"id": "d", "completion": None, "error": "no media"},
        {"id": "e", "completion": ""},
    ]
    model = Script(("woman", "[proud]"), ("", "I do not know."))
    labelled = label_rows(rows, model, builtin())
    assert [row["id"] for row in labelled] == list("abcde")
    assert [row.get("openset") for row in labelled] == ["[happy]", "[proud]", None, None, "[]"]
    assert [row.get("labels") for row in labelled] == [["happy"], ["proud"], None, None, []]
    assert labelled[0]["kept"] == 1
    assert labelled[2]["error"].startswith("labels: the reply 'I do not know.' is unusable")
    assert labelled[3] == rows[3]
    assert [row.get("label_model") for row in labelled] == [None, "script", "script", None, None]
    by_wheels = sentiment_rows(labelled, "rules")
    assert [row.get("sentiment") for row in by_wheels] == ["positive", "positive", None, None, "neutral"]
    assert summarise(by_wheels) == {
        "rows": 5,
        "labels": {"answer": 1, "llm": 1, "empty": 1},
        "sentiments": {"rules": 3},
        "doubtful": 0,
        "errors": 1,
        "without_completion": 1,
        "notes": {"no sound": 1},
    }
    # What failed is tried again when its output is given as input; the rest comes out the same.
    again = label_rows(by_wheels, Script(("woman", "[proud]"), ("", "[angry]")), builtin())
    assert [row.get("openset") for row in again] == ["[happy]", "[proud]", "[angry]", None, "[]"]
    assert [row["error"] for row in again] == [None, None, None, "no media", None]
    assert not any("sentiment" in row for row in again)
    write_rows(tmp_path / "out.jsonl", by_wheels, "openset")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == by_wheels
    write_rows(tmp_path / "out.json", by_wheels, "sentiment")
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": "positive", "b": "positive", "e": "neutral"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.jsonl"]


def test_one_object_cannot_hold_two_modes(tmp_path) -> None:
    rows = [{"id": "a", "mode": mode, "openset": "[]"} for mode in ("slow", "fast")]
    with pytest.raises(UserError, match="several modes"):
        write_rows(tmp_path / "out.json", rows, "openset")


def test_sentiment_by_a_language_model_needs_one() -> None:
    with pytest.raises(UserError, match="no language model was given"):
        sentiment_rows([{"id": "a", "openset": "[]", "error": None}], "llm")


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_extraction_survives_every_kind_of_bad_server(tmp_path) -> None:
    """Each text meets its own trouble; all that can be had is had, the rest is an error, and nothing is lost."""

    def behave(call: Call):
        text, first = call.text, len([c for c in server.calls if c.text == call.text]) == 1
        if "cannot be used" in text:  # the second chance
            return "[afraid]" if "prose" in json.dumps(call.body) else "[恐惧]"
        passing = {"slow down": status(429, {"Retry-After": "0"}), "break": hangs_up(), "fault": status(500)}
        for word, trouble in passing.items():
            if word in text:
                return trouble if first else "[happy]"
        lasting = {"gibberish": rubbish(), "blank": said(""), "too long": status(400, message="too long")}
        for word, trouble in lasting.items():
            if word in text:
                return trouble
        return "[害怕]" if "Chinese" in text else "He is afraid." if "prose" in text else "[happy]"

    words = ["plain", "slow down", "break", "fault", "gibberish", "blank", "too long", "Chinese", "prose"]
    rows = [{"id": word, "completion": f"This person is {word}."} for word in words]
    with Server(behave) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        client = Client("m", server.base_url, cache=cache, retries=QUICK, concurrency=4)
        labelled = label_rows(rows, client, builtin())
        asked = len(server.calls)
        again = label_rows(rows, Client("m", server.base_url, cache=cache, retries=QUICK), builtin())
    assert {row["id"]: row["openset"] for row in labelled} == {
        "plain": "[happy]",
        "slow down": "[happy]",
        "break": "[happy]",
        "fault": "[happy]",
        "gibberish": None,
        "blank": None,
        "too long": None,
        "Chinese": None,
        "prose": "[afraid]",
    }
    assert all((row["openset"] is None) == (row["error"] is not None) for row in labelled)
    assert summarise(labelled)["errors"] == 4
    assert again == labelled
    # Asked about again: what stayed without any reply, 2 attempts each for two of them, 1 for the third; and what
    # could not be read, once more with its correction.
    assert len(server.calls) - asked == 5 + 2


def test_a_stopped_extraction_goes_on_where_it_stopped(tmp_path) -> None:
    rows = [{"id": str(number), "completion": f"Person {number} laughs."} for number in range(6)]
    with Server(lambda call: "[happy]" if call.number < 3 else status(401)) as server:
        with ReplyCache(tmp_path / "c.sqlite") as cache, pytest.raises(UserError, match="401"):
            label_rows(rows, Client("m", server.base_url, cache=cache, retries=QUICK, concurrency=1))
        server.behave = lambda call: "[happy]"
        with ReplyCache(tmp_path / "c.sqlite") as cache:
            found = label_rows(rows, Client("m", server.base_url, cache=cache, retries=QUICK))
    assert [row["openset"] for row in found] == ["[happy]"] * 6
    assert len(server.calls) == 3 + 1 + 3


# --- a local checkpoint -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random causal language model whose tokens are single characters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llm") / "tiny-llm"
    signs = ["<end>", "<pad>", *(chr(code) for code in range(32, 127)), "\n"]
    words = Tokenizer(models.WordLevel({sign: place for place, sign in enumerate(signs)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(signs), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=0, pad_token_id=1, bos_token_id=None, max_position_embeddings=4096,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_local_model_replies_the_same_in_every_batch_and_only_once(checkpoint, tmp_path) -> None:
    from mer_r1.evaluation.llm.local import LocalModel

    prompts = [ChatPrompt.user("a" * number) for number in (1, 30, 7, 1)]
    told: list[int] = []
    with ReplyCache(tmp_path / "c.sqlite") as cache:
        model = LocalModel(checkpoint, Decoding(max_tokens=12), cache, batch_size=2, device="cpu")
        replies = model.complete(prompts, "1", lambda index, reply: told.append(index))
        alone = LocalModel(checkpoint, Decoding(max_tokens=12), batch_size=1, device="cpu").complete(prompts, "1")
        again = model.complete(prompts, "1")
        kept = len(cache)
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    assert sorted(told) == [0, 1, 2, 3]
    assert replies[0] == replies[3]
    assert replies[0].prompt_tokens == len("user: a\nassistant:")
    assert kept == 3
    assert all(reply.cached for reply in again)
    assert model.name.startswith("tiny-llm@")


def test_a_local_model_reads_labels_like_any_other(checkpoint) -> None:
    from mer_r1.evaluation.llm.local import LocalModel

    model = LocalModel(checkpoint, Decoding(max_tokens=8), device="cpu")
    (row,) = label_rows([{"id": "a", "completion": PROSE}], model, builtin())
    assert row["openset"] is None  # an untrained model writes rubbish, and that is said
    assert "unusable" in row["error"]
    assert row["label_model"] == model.name


def test_a_local_model_is_deterministic_when_seeded_and_refuses_pictures(checkpoint) -> None:
    from mer_r1.evaluation.llm.local import LocalModel

    sampling = Decoding(temperature=1.0, seed=3, max_tokens=12, top_p=0.9)
    first, second = (LocalModel(checkpoint, sampling, device="cpu") for _ in range(2))
    prompts = [ChatPrompt.user("x"), ChatPrompt.user("y")]
    texts = [reply.text for reply in first.complete(prompts, "1")]
    assert texts == [reply.text for reply in second.complete(prompts, "1")]
    greedy = LocalModel(checkpoint, Decoding(max_tokens=12), device="cpu").complete(prompts, "1")
    assert texts != [reply.text for reply in greedy]
    parts = [{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}}]
    with pytest.raises(UserError, match="reads text only"):
        first.complete([ChatPrompt(({"role": "user", "content": parts},))], "1")


def test_a_folder_without_a_model_is_said(tmp_path) -> None:
    pytest.importorskip("transformers")
    from mer_r1.evaluation.llm.local import LocalModel

    with pytest.raises(UserError, match=r"cannot load .* as a causal language model"):
        LocalModel(tmp_path)
