"""The client against real HTTP on loopback: nothing is lost, nothing asked twice, and no key gets out."""

import asyncio
import gzip
import json
import logging
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import Answer, Call, Server, as_json, breaks_off, hangs_up, no_choices, rubbish, said, status

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache, reply_key, without_media
from mer_r1.evaluation.llm.chat import REFERENCE_SAMPLING, ChatPrompt, Decoding, Prices, Reply, Usage
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.responses import Retries, backoff, read_reply, retry_after

KEY = "sk-" + "planted-0123456789abcdef"
QUICK = Retries(attempts=4, first_wait=0.01, longest_wait=0.02)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def prompts(count: int) -> list[ChatPrompt]:
    return [ChatPrompt.user(f"clip {number}") for number in range(count)]


def ask(server: Server, asked, cache=None, **options):
    client = Client("judge", server.base_url, cache=cache, **{"retries": QUICK, **options})
    return client.complete(asked, "1"), client


# --- replies ----------------------------------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_prompts_whatever_order_they_arrive_in() -> None:
    third_arrived, arrived = threading.Event(), []

    def behave(call: Call):
        if call.text != "clip 2":
            third_arrived.wait(60)
        return call.text.upper()

    def listener(index, reply):
        arrived.append(index)
        third_arrived.set()

    with Server(behave) as server:
        replies = Client("judge", server.base_url, retries=QUICK).complete(prompts(3), "1", listener)
    assert [reply.text for reply in replies] == ["CLIP 0", "CLIP 1", "CLIP 2"]
    assert arrived[0] == 2
    assert sorted(arrived) == [0, 1, 2]


def test_the_request_holds_the_decoding_the_schema_and_the_key() -> None:
    schema = {"type": "object", "properties": {"score": {"type": "array", "items": {"type": "integer"}}}}
    asked = ChatPrompt(({"role": "user", "content": "rate"},), schema)
    with Server(lambda call: '{"score": [1]}') as server:
        replies, _ = ask(server, [asked])
        ask(server, prompts(1), decoding=REFERENCE_SAMPLING)
    first, second = (call.body for call in server.calls)
    assert (first["temperature"], first["seed"], first["max_tokens"]) == (0.0, 0, 512)
    assert first["response_format"]["json_schema"]["schema"] == schema
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert replies[0].structured
    # Section 3 of the specification: temperature 0.7, top-p 0.8, repetition penalty 1.05, at most 512 tokens, no seed.
    sampled = {name: second[name] for name in ("temperature", "top_p", "repetition_penalty", "max_tokens")}
    assert sampled == {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "max_tokens": 512}
    assert "seed" not in second
    assert "response_format" not in second


def test_no_more_requests_at_once_than_allowed() -> None:
    gate = threading.Barrier(3)

    def behave(call: Call):
        gate.wait(60)  # passes only when three are under way
        return "ok"

    with Server(behave) as server:
        replies, _ = ask(server, prompts(9), concurrency=3)
    assert server.most_at_once == 3
    assert [reply.text for reply in replies] == ["ok"] * 9


def test_media_reach_the_server_whole() -> None:
    picture = "data:image/jpeg;base64," + "QUJD" * 1000
    parts = [
        {"type": "text", "text": "look and listen"},
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==" * 500, "format": "wav"}},
    ]
    with Server(lambda call: "seen") as server:
        ask(server, [ChatPrompt(({"role": "user", "content": parts},))])
    assert server.calls[0].body["messages"][0]["content"] == parts


def test_parts_of_a_reply_are_joined_and_cut_replies_are_marked() -> None:
    answers = {"clip 0": said([{"type": "text", "text": "[hap"}, {"type": "text", "text": "py]"}])}
    answers["clip 1"] = said("[happy, sa", finish_reason="length")
    with Server(lambda call: answers[call.text]) as server:
        replies, _ = ask(server, prompts(2))
    assert [(reply.text, reply.finish_reason) for reply in replies] == [("[happy]", "stop"), ("[happy, sa", "length")]


def test_usage_counts_tokens_requests_and_cost(tmp_path) -> None:
    def behave(call: Call):
        return no_choices() if call.number == 0 else said("ok", 100, 20)

    with Server(behave) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        _, client = ask(server, prompts(2), cache, concurrency=1)
        _, again = ask(server, prompts(2), cache)
    # The unusable reply read 3 tokens; two proper ones 100 and 20 each.
    assert client.usage == Usage(asked=2, requests=3, prompt_tokens=203, completion_tokens=40)
    assert again.usage == Usage(cached=2, cached_prompt_tokens=200, cached_completion_tokens=40)
    assert client.usage.cost(Prices(prompt=10, completion=100)) == pytest.approx((203 * 10 + 40 * 100) / 1e6)
    assert again.usage.cost(Prices(10, 100)) == 0


# --- bad servers ------------------------------------------------------------------------------------------------------

PASSING = {
    "500": status(500),
    "502": status(502),
    "503 without JSON": rubbish(),
    "408": status(408),
    "429": status(429),
    "breaks off": breaks_off(),
    "hangs up": hangs_up(),
    "HTML": rubbish(),
    "half JSON": rubbish(b'{"choices": [', "application/json"),
    "no choices": no_choices(),
    "null": as_json(None),
    "a list": as_json([1]),
    "choices is text": as_json({"choices": "x"}),
    "no message": as_json({"choices": [{}]}),
    "no content": said(None),
    "blank content": said(" \n"),
    "error with status 200": as_json({"error": {"message": "overloaded"}}),
    "nested without end": rubbish(b'{"choices": ' + b"[" * 100_000, "application/json"),
    "no gzip": Answer(200, b"no gzip", {"Content-Encoding": "gzip", "Content-Type": "application/json"}),
    "not UTF-8": rubbish(b"\xff\xfe\x00", "application/json"),
}


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING.keys())
def test_what_may_pass_is_tried_again(trouble) -> None:
    with Server(lambda call: trouble if call.number < 2 else "[happy]") as server:
        replies, client = ask(server, prompts(1))
    assert [reply.text for reply in replies] == ["[happy]"]
    assert (client.usage.requests, client.usage.asked, client.usage.failed) == (3, 1, 0)


LASTING = {**PASSING, "in circles": Answer(307, b"", {"Location": "/v1/chat/completions"})}


@pytest.mark.parametrize("trouble", LASTING.values(), ids=LASTING.keys())
def test_what_never_passes_becomes_an_error_and_is_not_kept(trouble) -> None:
    cache = ReplyCache(":memory:")
    with Server(lambda call: trouble if call.text == "clip 1" else "[happy]") as server:
        replies, client = ask(server, prompts(3), cache)
    assert [reply.text for reply in replies] == ["[happy]", None, "[happy]"]
    assert replies[1].error is not None
    assert replies[1].error.endswith("(after 4 attempts)")
    assert "\n" not in replies[1].error
    assert client.usage.failed == 1
    assert len(cache) == 2


def test_a_slow_server_is_given_up_and_asked_again() -> None:
    late = threading.Event()

    def behave(call: Call):
        if call.number == 0:
            late.wait(60)
        return "ok"

    with Server(behave) as server:
        replies, client = ask(server, prompts(1), timeout=1.0, retries=Retries(attempts=50, first_wait=0))
        late.set()
    assert replies[0].text == "ok"
    assert client.usage.requests >= 2


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    client = Client("m", f"http://127.0.0.1:{free}/v1", retries=QUICK)
    (reply,) = client.complete(prompts(1), "1")
    assert reply.text is None
    assert reply.error is not None
    assert reply.error.startswith("the connection failed")


def test_everyone_waits_when_the_server_asks_to() -> None:
    def behave(call: Call):
        return status(429, {"Retry-After": "0.4"}) if call.number == 0 else "ok"

    with Server(behave) as server:
        replies, _ = ask(server, prompts(3), concurrency=1)
    assert [reply.text for reply in replies] == ["ok"] * 3
    # A lower bound only: sleeping may take longer, never less. Without the header the wait is at most 0.02 s.
    assert server.calls[1].moment - server.calls[0].moment > 0.38


def test_a_server_that_asks_to_wait_for_hours_stops_the_run() -> None:
    with (
        Server(lambda call: status(429, {"Retry-After": "7200"})) as server,
        pytest.raises(UserError, match="7200 s: run again then"),
    ):
        ask(server, prompts(3), concurrency=1)
    assert len(server.calls) == 1


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_what_nobody_can_pass_stops_the_run_and_keeps_what_has_arrived(code, tmp_path) -> None:
    def behave(call: Call):
        return f"reply to {call.text}" if call.number < 2 else status(code, message="not for you")

    with Server(behave) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        with pytest.raises(UserError, match=f"judge at {server.base_url}: {code}, .*not for you") as caught:
            ask(server, prompts(50), cache, concurrency=1)
        assert "\n" not in str(caught.value)
        assert len(server.calls) == 3
        assert len(cache) == 2
        server.behave = lambda call: "later"
        replies, client = ask(server, prompts(4), cache)
    assert [reply.text for reply in replies] == ["reply to clip 0", "reply to clip 1", "later", "later"]
    assert (client.usage.cached, client.usage.asked) == (2, 2)


def test_requests_under_way_are_waited_for_when_another_stops_the_run() -> None:
    refused, cache = threading.Event(), ReplyCache(":memory:")

    def behave(call: Call):
        if call.text == "clip 0":
            refused.wait(60)
            return "paid for"
        refused.set()
        return status(401)

    with Server(behave) as server, pytest.raises(UserError, match="401"):
        ask(server, prompts(2), cache, concurrency=2)
    assert [row["text"] for row in cache] == ["paid for"]


def test_an_empty_account_stops_the_run_although_its_status_is_429() -> None:
    broke = status(429, code="insufficient_quota", type="insufficient_quota")
    with Server(lambda call: broke) as server, pytest.raises(UserError, match="quota is used up"):
        ask(server, prompts(2), concurrency=1)
    assert len(server.calls) == 1


def test_a_server_that_fails_everything_is_given_up() -> None:
    retries = Retries(attempts=2, first_wait=0, longest_wait=0, give_up_after=3)
    with (
        Server(lambda call: status(500)) as server,
        pytest.raises(UserError, match="3 prompts in a row got no reply; the last: 500: no"),
    ):
        ask(server, prompts(100), retries=retries, concurrency=1)
    assert len(server.calls) == 6


def test_a_prompt_that_is_refused_for_itself_is_not_asked_again() -> None:
    with Server(lambda call: status(400, message="too long") if call.text == "clip 1" else "ok") as server:
        replies, client = ask(server, prompts(3))
    assert [reply.error for reply in replies] == [None, "400: too long", None]
    assert client.usage.requests == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said(None, refusal="I cannot"), "the model refuses: I cannot"),
        (said("", finish_reason="length"), "an empty reply, ended by 'length'"),
        (said(None, finish_reason="content_filter"), "an empty reply, ended by 'content_filter'"),
    ],
)
def test_a_model_that_says_no_is_believed(answer, message) -> None:
    with Server(lambda call: answer) as server:
        replies, client = ask(server, prompts(1))
    assert (replies[0].error, client.usage.requests) == (message, 1)


def test_a_server_without_structured_output_is_asked_in_words(caplog) -> None:
    def behave(call: Call):
        return status(400, message="what is response_format?") if "response_format" in call.body else "in words"

    asked = [ChatPrompt(prompt.messages, {"type": "object"}) for prompt in prompts(5)]
    with Server(behave) as server:
        replies, client = ask(server, asked, concurrency=1)
    assert [(reply.text, reply.structured) for reply in replies] == [("in words", False)] * 5
    assert client.usage.requests == 6  # the server was tried once
    assert caplog.text.count("does not support structured output") == 1


def test_a_bad_prompt_does_not_end_structured_output_for_the_others() -> None:
    def behave(call: Call):
        return status(400, message="filtered") if call.text == "clip 0" else "{}"

    asked = [ChatPrompt(prompt.messages, {"type": "object"}) for prompt in prompts(3)]
    with Server(behave) as server:
        replies, _ = ask(server, asked, concurrency=1)
    assert replies[0].error == "400: filtered"
    assert [reply.structured for reply in replies[1:]] == [True, True]


def test_the_newer_name_of_max_tokens_is_found_out_once() -> None:
    def behave(call: Call):
        return (
            status(400, message="use max_completion_tokens", param="max_tokens") if "max_tokens" in call.body else "y"
        )

    with Server(behave) as server:
        replies, client = ask(server, prompts(3), concurrency=1)
    assert [reply.text for reply in replies] == ["y"] * 3
    assert client.usage.requests == 4
    assert server.calls[-1].body["max_completion_tokens"] == 512


MISTRAL = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
REFUSALS = {
    "temperature": status(400, message="only 1 is supported", param="temperature"),
    "seed": as_json({"object": "error", "message": MISTRAL, "param": None}, 422),
    "max_tokens": status(400, message="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    "max_completion_tokens": status(400, message="unknown field max_completion_tokens"),
    "top_p": status(422, message="`top_p` must be strictly positive"),
    "response_format": status(400, message="guided decoding is off"),
}


def test_what_the_server_does_not_take_is_left_out_after_one_note(caplog) -> None:
    def behave(call: Call):
        refused = next((name for name in REFUSALS if name in call.body), None)
        return "{}" if refused is None else REFUSALS[refused]

    asked = [ChatPrompt(prompt.messages, {"type": "object"}) for prompt in prompts(6)]
    with Server(behave) as server:
        replies, client = ask(server, asked, concurrency=2, decoding=Decoding(top_p=0.5))
    assert [(reply.text, reply.structured) for reply in replies] == [("{}", False)] * 6
    assert set(client.usage.left_out) == set(REFUSALS)
    assert [caplog.text.count(f"does not take our {name}:") for name in ("temperature", "seed", "top_p")] == [1, 1, 1]
    assert server.calls[-1].body.keys() == {"model", "messages"}


def test_what_one_request_learns_makes_those_under_way_ask_again() -> None:
    """All four are refused at once for the name of max_tokens: none of them may conclude anything else from it."""
    gate = threading.Barrier(4)

    def behave(call: Call):
        if "max_tokens" in call.body:
            gate.wait(60)
            return REFUSALS["max_tokens"]
        return "{}"

    asked = [ChatPrompt(prompt.messages, {"type": "object"}) for prompt in prompts(4)]
    with Server(behave) as server:
        replies, client = ask(server, asked, concurrency=4)
    assert [(reply.text, reply.structured) for reply in replies] == [("{}", True)] * 4
    assert (client.usage.left_out, client.usage.requests) == (["max_tokens"], 8)


def test_a_prompt_that_is_too_long_says_nothing_about_a_parameter() -> None:
    long = "'max_tokens' is too large: 512. This model's maximum context length is 400 tokens."
    with Server(lambda call: status(400, message=long, param="max_tokens")) as server:
        (reply,), client = ask(server, prompts(1))
    assert reply.error is not None
    assert reply.error.startswith("400: 'max_tokens' is too large")
    assert (client.usage.left_out, client.usage.requests) == ([], 1)


def test_a_schema_is_given_up_without_a_reason_only_if_it_fails_again_and_again() -> None:
    def behave(call: Call):
        return status(400, message="bad request") if "response_format" in call.body else "in words"

    asked = [ChatPrompt(prompt.messages, {"type": "object"}) for prompt in prompts(5)]
    with Server(behave) as server:
        replies, client = ask(server, asked, concurrency=1)
    assert [reply.text for reply in replies] == ["in words"] * 5
    assert (client.usage.requests, client.usage.left_out) == (8, ["response_format"])


def test_further_fields_are_sent_are_part_of_the_key_and_stop_the_run_if_refused() -> None:
    thinking_off = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.3}
    decoding = Decoding(extra_body=thinking_off)
    with Server(lambda call: "ok") as server:
        ask(server, prompts(1), decoding=decoding)
        body = server.calls[0].body
        assert {name: body[name] for name in thinking_off} == thinking_off
        server.behave = lambda call: status(400, message="unknown field: chat_template_kwargs")
        with pytest.raises(UserError, match="chat_template_kwargs of the extra body: 400: unknown field"):
            ask(server, prompts(1), decoding=decoding)
    keys = {reply_key("m", prompts(1)[0], how, "1") for how in (decoding, Decoding(), Decoding(extra_body={}))}
    assert len(keys) == 2
    assert "extra_body" not in Decoding().settings, "keys and folders of earlier versions stay valid"
    with pytest.raises(UserError, match="messages is set by the client"):
        Decoding(extra_body={"messages": []})


@pytest.mark.parametrize("ended", ["error", "abort", "ABORTED", "tool_calls", 10**50, ["x"], "\ud800"])
def test_a_reply_that_broke_off_is_asked_again(ended) -> None:
    cache = ReplyCache(":memory:")
    broken = said("[happy, sa", finish_reason=ended)
    with Server(lambda call: broken if call.number < 2 else said("[happy]", finish_reason="EOS")) as server:
        replies, client = ask(server, prompts(1), cache)
        assert [(reply.text, reply.finish_reason) for reply in replies] == [("[happy]", "stop")]
        server.behave = lambda call: broken
        (lost,), _ = ask(server, [ChatPrompt.user("another")], cache)
    assert client.usage.requests == 3
    assert lost.text is None
    assert str(lost.error).startswith("a broken reply, ended by ")
    assert lost.finish_reason not in ("stop", "")
    assert len(cache) == 1


def test_a_filtered_reply_is_an_error_at_once() -> None:
    with Server(lambda call: said("[happy", finish_reason="content_filter")) as server:
        (reply,), client = ask(server, prompts(1))
    assert (reply.text, reply.error) == (None, "a broken reply, ended by 'content_filter'")
    assert (reply.finish_reason, client.usage.requests) == ("content_filter", 1)


@pytest.mark.parametrize(
    ("message", "text", "final"),
    [
        ({"text": "[happy]", "reasoning_content": "[angry]?"}, "<think>[angry]?</think>[happy]", "[happy]"),
        ({"text": "[happy]", "reasoning": "[angry]?"}, "<think>[angry]?</think>[happy]", "[happy]"),
        ({"text": None, "reasoning_content": "[happy]"}, "[happy]", "[happy]"),
        (
            {"text": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "[sad]"}]},
            "<think>hm</think>[sad]",
            "[sad]",
        ),
        ({"text": "<think>hm</think>[sad]", "reasoning": "hm"}, "<think>hm</think>[sad]", "[sad]"),
    ],
)
def test_reasoning_that_the_server_parsed_out_is_known(message, text, final) -> None:
    with Server(lambda call: said(**message)) as server:
        (reply,), _ = ask(server, prompts(1))
    assert (reply.text, reply.final) == (text, final)


def test_a_reply_without_an_end_or_of_nothing_but_reasoning_has_a_problem() -> None:
    assert Reply("[happy]").problem is None
    assert Reply("[hap", finish_reason="length").problem == "it did not end properly (length)"
    assert Reply("<think>so [happy]").problem == "it is nothing but reasoning"
    assert Reply(None, "no reply in time").problem == "no reply in time"


def test_a_fresh_prompt_is_asked_again_and_its_reply_replaces_the_old_one() -> None:
    cache, (asked,) = ReplyCache(":memory:"), prompts(1)
    with Server(lambda call: f"reply {call.number}") as server:
        for prompt, text in ((asked, "reply 0"), (replace(asked, fresh=True), "reply 1"), (asked, "reply 1")):
            assert ask(server, [prompt], cache)[0][0].text == text


HOSTILE = {
    "huge counts": as_json(json.loads(said("[happy]").body) | {"usage": {"prompt_tokens": 10**30}}),
    "counts that are none": as_json(json.loads(said("[happy]").body) | {"usage": {"prompt_tokens": True}}),
    "byte order mark": Answer(200, b"\xef\xbb\xbf" + said("[happy]").body),
    "UTF-16": Answer(200, said("[happy]").body.decode().encode("utf-16")),
    "odd charset": Answer(200, said("[happy]").body, {"Content-Type": "application/json; charset=idna"}),
    "half a character": as_json(
        {"choices": [{"message": {"content": "[happy]"}, "finish_reason": "stop"}], "\ud800": 1}
    ),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_odd_fields_cost_nothing(answer, tmp_path) -> None:
    with Server(lambda call: answer) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        (reply,), client = ask(server, prompts(1), cache)
        assert len(cache) == 1
    assert reply.text == "[happy]"
    assert client.usage.prompt_tokens in (0, 10)


ESCAPED = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
FAILING = {
    "refusal": '{"choices": [{"message": {"content": "", "refusal": "KEY \\ud800 \\u001b[31m"}}]}',
    "finish_reason": '{"choices": [{"message": {"content": "x"}, "finish_reason": "KEY"}]}',
    "no choice": '{"error": {"message": "KEY"}}',
    "no JSON": "KEY \x1b[31m",
    "nested": '{"error":' * 3000 + "1" + "}" * 3000,
}


@pytest.mark.parametrize("code", [200, 400])
@pytest.mark.parametrize("body", FAILING.values(), ids=FAILING.keys())
def test_hostile_errors_are_one_short_printable_line_without_the_key(code, body) -> None:
    answer = Answer(code, body.replace("KEY", ESCAPED).encode(), {"Content-Type": "text/plain; charset=idna"})
    with Server(lambda call: answer) as server:
        (reply,), _ = ask(server, prompts(1), retries=Retries(attempts=1))
    assert reply.text is None
    assert str(reply.error).isprintable()
    assert len(str(reply.error)) < 400
    assert KEY not in f"{reply.error}{reply.finish_reason}"


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    bomb = gzip.compress(b" " * (64 * 2**20))
    with Server(lambda call: Answer(200, bomb, {"Content-Encoding": "gzip"})) as server:
        (reply,), _ = ask(server, prompts(1), retries=Retries(attempts=1))
    assert "longer than 16 MiB" in str(reply.error)


def test_an_error_in_the_listener_ends_the_run_and_the_replies_are_kept() -> None:
    cache = ReplyCache(":memory:")

    def listener(index, reply):
        raise KeyError(index)

    with Server(lambda call: "ok") as server, pytest.raises(KeyError):
        Client("m", server.base_url, cache=cache, concurrency=1).complete(prompts(3), "1", listener)
    assert len(cache) >= 1


# --- the cache --------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path) -> None:
    asked = [*prompts(4), *prompts(4)]
    with Server(lambda call: f"{call.text}, call {call.number}") as server:
        with ReplyCache(tmp_path / "sub" / "c.sqlite") as cache:
            first, client = ask(server, asked, cache)
            assert client.missing(asked, "1") == 0
            assert client.missing(asked, "2") == 4
        with ReplyCache(tmp_path / "sub" / "c.sqlite") as cache:
            second, _ = ask(server, asked, cache)
    assert sorted(server.texts()) == ["clip 0", "clip 1", "clip 2", "clip 3"]
    assert [reply.text for reply in first] == [reply.text for reply in second]
    assert first[:4] == first[4:]
    assert all(reply.cached for reply in second)


def test_a_killed_run_goes_on_from_where_it_was(tmp_path) -> None:
    """The process is killed outright while the fourth request is under way."""
    waiting, killed = threading.Event(), threading.Event()

    def behave(call: Call):
        if call.number == 3:
            waiting.set()
            killed.wait(60)
        return f"reply to {call.text}"

    program = """
        import sys
        from mer_r1.evaluation.llm.chat import ChatPrompt
        from mer_r1.evaluation.llm.client import Client
        from mer_r1.evaluation.llm.cache import ReplyCache
        asked = [ChatPrompt.user(f"clip {number}") for number in range(6)]
        Client("judge", sys.argv[1], cache=ReplyCache(sys.argv[2]), concurrency=1).complete(asked, "1")
    """
    with Server(behave) as server:
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), server.base_url, str(tmp_path / "c.sqlite")]
        )
        assert waiting.wait(120)
        run.kill()
        run.wait()
        killed.set()
        with ReplyCache(tmp_path / "c.sqlite") as cache:
            assert len(cache) == 3
            replies, client = ask(server, prompts(6), cache, concurrency=1)
    assert [reply.text for reply in replies] == [f"reply to clip {number}" for number in range(6)]
    assert (client.usage.cached, client.usage.asked) == (3, 3)
    assert [server.texts().count(f"clip {number}") for number in range(6)] == [1, 1, 1, 2, 1, 1]


def test_a_cancelled_run_keeps_what_has_arrived() -> None:
    cache, third = ReplyCache(":memory:"), threading.Event()

    def behave(call: Call):
        if call.number == 2:
            third.wait(60)
        return "ok"

    async def run(server: Server) -> None:
        client = Client("judge", server.base_url, cache=cache, concurrency=1)
        task = asyncio.create_task(client.acomplete(prompts(5), "1"))
        while len(cache) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Server(behave) as server:
        asyncio.run(run(server))
        third.set()
    assert len(cache) == 2


def test_the_key_of_a_reply_is_everything_it_depends_on() -> None:
    base = ChatPrompt.user("x")
    keys = [
        reply_key("m", base, Decoding(), "1"),
        reply_key("n", base, Decoding(), "1"),
        reply_key("m", ChatPrompt.user("y"), Decoding(), "1"),
        reply_key("m", ChatPrompt(base.messages, {"type": "object"}), Decoding(), "1"),
        reply_key("m", ChatPrompt(base.messages, repeat=1), Decoding(), "1"),
        reply_key("m", base.again("a", "b"), Decoding(), "1"),
        reply_key("m", base, REFERENCE_SAMPLING, "1"),
        reply_key("m", base, Decoding(seed=1), "1"),
        reply_key("m", base, Decoding(), "2"),
    ]
    assert len(set(keys)) == len(keys)
    assert reply_key("m", ChatPrompt.user("x"), Decoding(temperature=0), "1") == keys[0]


def test_media_are_kept_as_hashes_and_tell_prompts_apart(tmp_path) -> None:
    def with_media(picture: str, sound: str) -> ChatPrompt:
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}},
            {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}},
        ]
        return ChatPrompt(({"role": "user", "content": parts},))

    asked = [with_media("PICTURE1", "SOUND1"), with_media("PICTURE2", "SOUND1"), with_media("PICTURE1", "SOUND2")]
    with Server(lambda call: f"{call.number}") as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        ask(server, asked, cache)
        rows = list(cache)
    assert len(rows) == 3
    assert all("PICTURE" not in row["messages"] and "SOUND" not in row["messages"] for row in rows)
    assert all("https://example.org/a.jpg" in row["messages"] for row in rows)
    assert b"PICTURE" not in (tmp_path / "c.sqlite").read_bytes()


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_messages_without_media_are_left_as_they_are(value) -> None:
    json_like = json.loads(json.dumps(value))
    if "data:" not in json.dumps(json_like) and "input_audio" not in json.dumps(json_like):
        assert without_media(json_like) == json_like


def test_a_row_of_the_cache_says_what_was_asked(tmp_path) -> None:
    with Server(lambda call: said("réponse", 7, 3)) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        ask(server, [ChatPrompt.user("Qu’est-ce?")], cache)
        (row,) = cache
    assert (row["model"], row["version"], row["text"]) == ("judge", "1", "réponse")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 3)
    assert json.loads(row["messages"]) == [{"content": "Qu’est-ce?", "role": "user"}]
    assert json.loads(row["parameters"])["temperature"] == 0


def test_a_file_that_is_no_cache_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("This is no database, and it must stay as it is. " * 50)
    with pytest.raises(UserError, match=r"notes\.txt: cannot be used"):
        ReplyCache(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("This is no database")
    with sqlite3.connect(tmp_path / "later.sqlite") as later:
        later.execute("pragma user_version = 99")
    with pytest.raises(UserError, match="layout is number 99"):
        ReplyCache(tmp_path / "later.sqlite")


def kept(path: Path, *statements: str) -> Path:
    """A cache with one reply, changed by SQL."""
    with ReplyCache(path) as cache:
        cache.put("k", Reply("happy", None, "stop", False, 1, 1, 0.5), "m", ChatPrompt.user("a"), Decoding(), "1")
    for statement in statements:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute(statement)
    return path


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["drop table replies", "create table replies (key text primary key, reply text)"], "other columns"),
        (["alter table replies add column more text"], "other columns"),
        (["update replies set text = x'ff00'"], "damaged"),
        (["update replies set text = cast(x'ff00' as text)"], "decode"),
        (["update replies set prompt_tokens = 'abc'"], "damaged"),
        (["update replies set seconds = 'x'"], "damaged"),
    ],
)
def test_a_cache_of_another_layout_or_content_is_one_line(tmp_path, statements, told) -> None:
    path = kept(tmp_path / "c.sqlite", *statements)
    with pytest.raises(UserError, match=told) as caught, ReplyCache(path) as cache:
        cache.get("k")
    assert str(path) in str(caught.value)


def test_reading_a_cache_leaves_its_file_as_it_is(tmp_path) -> None:
    path = kept(tmp_path / "c.sqlite")
    before = path.read_bytes()
    with ReplyCache(path) as cache:
        assert cache.get("k") is not None
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.sqlite"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path) -> None:
    path = kept(tmp_path / "c.sqlite", "alter table replies rename to x", "create view replies as select * from x")
    with ReplyCache(path) as cache, pytest.raises(UserError, match="cannot modify replies"):
        cache.put("l", Reply("a", None, "stop", False, 1, 1, 0.5), "m", ChatPrompt.user("a"), Decoding(), "1")


def test_damaged_pages_of_a_cache_are_one_line(tmp_path) -> None:
    path = kept(tmp_path / "c.sqlite", "pragma wal_checkpoint(truncate)", "pragma journal_mode = delete")
    content = path.read_bytes()
    for begin in range(100, len(content), 997):
        path.write_bytes(content[:begin] + b"\xa5" * 1000 + content[begin + 1000 :])
        with suppress(UserError), ReplyCache(path) as cache:
            cache.get("k")


def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_when_there_is_room(tmp_path) -> None:
    with Server(lambda call: f"reply to {call.text}") as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        pages = cache._rows("pragma page_count")[0][0]
        cache._rows(f"pragma max_page_count = {pages}")
        with pytest.raises(UserError, match="disk is full"):
            ask(server, [ChatPrompt.user(f"{number} " + "x" * 5000) for number in range(4)], cache)
        kept_before = len(cache)
        cache._rows(f"pragma max_page_count = {pages + 100}")
        replies, _ = ask(server, [ChatPrompt.user(f"{number} " + "x" * 5000) for number in range(4)], cache)
    assert [reply.text[:10] for reply in replies] == ["reply to 0", "reply to 1", "reply to 2", "reply to 3"]
    assert kept_before < 4


def test_text_that_is_no_unicode_is_asked_and_kept(tmp_path) -> None:
    answer = as_json({"choices": [{"message": {"content": "odd \ud800 reply"}}]})
    with Server(lambda call: answer) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        replies, _ = ask(server, [ChatPrompt.user("half a \udfff character")], cache)
    assert replies[0].text == "odd ? reply"
    assert server.texts() == ["half a ? character"]


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_cache_no_log_no_message_and_no_reply(tmp_path, caplog, capfd) -> None:
    def behave(call: Call):
        echo = call.headers["authorization"]
        answers = {
            "clip 0": said(f"You sent {echo}"),
            "clip 1": status(400, message="x" * 180 + f" {echo}"),  # cut off within the key
            "clip 2": rubbish(f"<p>{echo}</p>".encode()),
            "clip 3": status(500, {"X-Echo": echo}, message=echo),
            "clip 4": status(401, message=f"Incorrect API key provided: {echo}"),
        }
        return answers[call.text]

    caplog.set_level(logging.DEBUG)
    with Server(behave) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        client = Client("judge", server.base_url, cache=cache, retries=QUICK, concurrency=1)
        replies = client.complete(prompts(4), "1")
        with pytest.raises(UserError, match="Incorrect API key provided") as caught:
            client.complete(prompts(5), "1")
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert replies[0].text == "You sent Bearer [key]"
    output = "".join(capfd.readouterr())
    shown = f"{replies} {caught.value!r} {client!r} {vars(client)} {caplog.text} {output}"
    for piece in (KEY, KEY[:15]):
        assert piece not in shown
        assert piece.encode() not in files


def escaped(text: str) -> str:
    """A text as JSON may write it, every character as an escape."""
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def test_the_key_is_blanked_in_every_field_however_it_is_written(tmp_path) -> None:
    def behave(call: Call):
        echo = escaped(call.headers["authorization"])
        parts = {
            "clip 0": f'{{"finish_reason": "{echo}", "message": {{"content": "a"}}}}',
            "clip 1": f'{{"message": {{"content": "{echo}"}}}}',
            "clip 2": f'{{"message": {{"content": null, "refusal": "{"x" * 180} {echo}"}}}}',
        }
        if call.text == "clip 3":
            return Answer(400, f'{{"detail": [{{"{echo}": "{echo}"}}]}}'.encode(), {"Content-Type": "application/json"})
        body = f'{{"choices": [{parts[call.text]}]}}'
        return Answer(200, body.encode(), {"Content-Type": "application/json"})

    with Server(behave) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        replies, _ = ask(server, prompts(4), cache)
        rows = str(list(cache))
    assert replies[0].finish_reason == "Bearer [key]"
    assert replies[1].text == "Bearer [key]"
    assert all("[key]" in str(reply) for reply in replies[:2] + replies[3:])
    for piece in (KEY, KEY[:10]):
        assert piece not in f"{replies} {rows}"


def test_a_word_that_stands_in_for_a_key_is_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Server(lambda call: '["none"]') as server:
        assert Client("m", server.base_url).complete(prompts(1), "1")[0].text == '["none"]'


def test_a_redirect_to_another_server_is_refused_and_one_on_the_same_is_followed() -> None:
    with Server(lambda call: "here") as other:

        def behave(call: Call):
            return status(307, {"Location": f"{other.base_url}/chat/completions"})

        with (
            Server(behave) as server,
            pytest.raises(UserError, match="redirects to another server, http://127") as caught,
        ):
            ask(server, prompts(3))
        assert other.calls == []
        assert len(server.calls) <= 3
    assert KEY not in str(caught.value)
    with Server(lambda call: "here" if call.number else status(307, {"Location": "/v1/chat/completions"})) as server:
        replies, _ = ask(server, prompts(1))
    assert replies[0].text == "here"


def test_the_key_comes_from_the_named_variable_when_it_is_used(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(lambda call: "ok") as server:
        client = Client("m", server.base_url, key_variable="MY_JUDGE_KEY")
        client.complete(prompts(1), "1")  # a local server wants none
        monkeypatch.setenv("MY_JUDGE_KEY", " my-own-key\n")
        client.complete(prompts(2), "1")
    assert [call.headers["authorization"] for call in server.calls] == ["Bearer none", "Bearer my-own-key"]


def test_a_missing_or_broken_key_is_said_without_showing_it(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        Client("m", "https://api.openai.com/v1").complete(prompts(1), "1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nwith a second line")
    with pytest.raises(UserError, match="printable ASCII") as caught:
        Client("m", "http://127.0.0.1:1/v1").complete(prompts(1), "1")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="name of the environment variable with the key, not the key") as caught:
        Client("m", "https://api.openai.com/v1", key_variable="sk-secret").complete(prompts(1), "1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://host/v1", "http://", "", "ftp://me:" + "pw@host/v1", "https://host/v1?key=s", "pw"],
)
def test_an_address_that_cannot_work_is_refused(url) -> None:
    with pytest.raises(UserError, match="base URL") as caught:
        Client("m", url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["me:pw@host/v1", "http:me:pw@host/v1", "https://host/v1#pw", "//me:pw@host"])
def test_credentials_in_an_address_are_refused_and_not_shown(url) -> None:
    with pytest.raises(UserError, match="base URL") as caught:
        Client("m", url)
    assert "pw" not in str(caught.value)


# --- small parts ------------------------------------------------------------------------------------------------------


def test_retry_after_by_hand() -> None:
    now = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after": "Fri, 02 Jan 2026 12:01:30 GMT"}, now) == 90
    assert retry_after({"retry-after": "Fri, 02 Jan 2026 11:00:00 GMT"}, now) == 0
    assert retry_after({"retry-after": "Mon, 01 Jan 0001 00:00:00 +0100"}, now) == 0


@pytest.mark.parametrize(
    "value",
    [
        *("", "inf", "1e400", "99999999", "(" * 5000, "soon, , , :"),
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 99 Foo 2026 25:61:61 GMT",
        "Mon, 01 Jan 2026 00:00:00 +9999999999",
        "Fri, 31 Dec 9999 23:59:59 -2300",
    ],
)
def test_an_absurd_retry_after_is_none(value) -> None:
    assert retry_after({"retry-after": value}, datetime(2026, 1, 2, tzinfo=UTC)) is None


@given(st.text())
def test_no_retry_after_breaks_the_reader(text) -> None:
    assert 0 <= (retry_after({"retry-after": text}) or 0) <= 7 * 86400


@pytest.mark.parametrize("asked", ["0", "-5", "Fri, 02 Jan 2026 11:00:00 GMT"])
def test_a_retry_after_of_nothing_still_leaves_the_server_time(asked) -> None:
    def behave(call: Call):
        return status(429, {"Retry-After": asked}) if call.number == 0 else "ok"

    with Server(behave) as server:
        ask(server, prompts(1), retries=Retries(attempts=2, first_wait=0.4))
    assert server.calls[1].moment - server.calls[0].moment >= 0.2  # half of the first wait, at least


@given(st.integers(0, 10_000), st.floats(0, 10), st.floats(0, 100))
def test_backoff_doubles_up_to_its_limit_with_jitter(attempt, first, longest) -> None:
    ceiling = min(longest, first * 2 ** min(attempt, 60))
    assert ceiling / 2 <= backoff(attempt, first, longest) <= ceiling


@given(
    st.text()
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i)).map(json.dumps)
)
def test_no_body_breaks_the_reader(text) -> None:
    result, read, written = read_reply(text, 0.0, structured=False)
    assert result
    assert read >= 0
    assert written >= 0


def test_decoding_refuses_what_no_server_takes() -> None:
    for wrong in ({"temperature": -1}, {"temperature": float("nan")}, {"max_tokens": 0}, {"top_p": 0}, {"top_p": 2}):
        with pytest.raises(UserError):
            Decoding(**wrong)


def test_importing_the_client_loads_neither_openai_nor_torch() -> None:
    loaded = "any(name in sys.modules for name in ('openai', 'torch', 'httpx2'))"
    program = f"import sys, mer_r1.evaluation.llm.client; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
