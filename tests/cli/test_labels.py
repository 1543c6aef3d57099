"""The commands about labels, as typed."""

import json
import subprocess
import sys

import pytest
from llm_server import Call, Server, said, status
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.errors import UserError

KEY = "sk-" + "planted-0123456789abcdef"
ROWS = [
    {"id": "a", "mode": "slow", "completion": "<think> x </think><answer> happy, proud </answer>"},
    {"id": "b", "mode": "slow", "completion": "She seems rather upset."},
    {"id": "c", "mode": "fast", "completion": "<think></think><answer> sad </answer>"},
    {"id": "d", "mode": "fast", "completion": "", "error": "no media"},
]


@pytest.fixture
def predictions(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def mer_r1(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def behave(call: Call):
    if "Sentiment:" in call.text:
        return "positive" if "[happy, proud]" in call.text else "negative"
    return said("[upset]", 120, 4)


def test_extract_asks_only_where_it_must_and_not_again(predictions, tmp_path) -> None:
    out = tmp_path / "labels.jsonl"
    with Server(behave) as server:
        options = ("--predictions", predictions, "--reader", "m", "--reader-url", server.base_url)
        first = mer_r1("extract", *options, "--out", out, "--prices", "1,10")
        second = mer_r1("extract", *options, "--out", tmp_path / "all.json", "--kind", "sentiment", "--json")
    assert first.exit_code == 1  # one clip has no completion
    assert "labels: 2 from answer, 1 from llm" in first.stdout
    assert "asked 1, known already 0, without reply 0; 120 tokens read, 4 written, cost 0.0002" in first.stdout
    assert [json.loads(line).get("openset") for line in out.read_text().splitlines()] == [
        "[happy, proud]",
        "[upset]",
        "[sad]",
        None,
    ]
    report = json.loads(second.stdout)
    assert (report["usage"]["asked"], report["usage"]["cached"]) == (3, 1)
    assert report["failed"] == {"d": "no media"}
    assert json.loads((tmp_path / "all.json").read_text()) == {"a": "positive", "b": "negative", "c": "negative"}
    assert len(server.calls) == 4


def test_a_run_in_which_nothing_was_read_has_a_status_of_its_own(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "completion": "She seems rather upset."}\n')
    extra = ("--extra-body", '{"chat_template_kwargs": {"enable_thinking": false}}')
    options = ("extract", "--predictions", path, "--out", tmp_path / "o.jsonl", "--reader", "m", *extra, "--json")
    with Server(lambda call: "I cannot tell.") as server:
        assert mer_r1(*options, "--reader-url", server.base_url).exit_code == 3
        assert server.calls[0].body["chat_template_kwargs"] == {"enable_thinking": False}
        server.behave = behave
        assert mer_r1(*options, "--reader-url", server.base_url).exit_code == 0, "asked again, although it was cached"


def test_no_key_is_left_anywhere(predictions, tmp_path) -> None:
    with Server(lambda call: said(f"[happy] {call.headers['authorization']}")) as server:
        done = mer_r1(
            "extract", "--predictions", predictions, "--reader", "m", "--reader-url", server.base_url,
            "--out", tmp_path / "labels.jsonl",
        )  # fmt: skip
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in done.output
    written = sorted(path.name for path in tmp_path.iterdir())
    assert {"labels.jsonl", "llm-replies.sqlite"} <= set(written)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_wheels_give_a_sentiment_without_any_model(predictions, tmp_path) -> None:
    out = tmp_path / "sentiment.json"
    done = mer_r1(
        "extract", "--predictions", predictions, "--out", out, "--kind", "sentiment", "--sentiment", "rules", "--think",
        "fast",
    )  # fmt: skip
    assert done.exit_code == 1
    assert json.loads(out.read_text()) == {"c": "negative"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reader", "nowhere"), "no such folder; for a served model"),
        (("--reader-url", "http://localhost:1/v1"), "needs --reader"),
        (("--prices", "cheap"), "expected two numbers"),
        (("--extra-body", '{"a": 1}'), "expected --reader-url, too"),
        (("--reader", "m", "--reader-url", "http://localhost:1/v1", "--extra-body", "[1]"), "expected a JSON object"),
        (("--reader", "m", "--reader-url", "http://localhost:1/v1", "--extra-body", "{"), "expected a JSON object"),
        (("--reader", "m", "--reader-url", "http://localhost:1/v1", "--extra-body", '{"n": 2}'), "n is set by"),
        (("--reader", "m", "--reader-url", "localhost"), "base URL: expected an address"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(predictions, tmp_path, options, message) -> None:
    done = mer_r1("extract", "--predictions", predictions, "--out", tmp_path / "o.jsonl", *options)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "o.jsonl").exists()


def test_a_refused_key_stops_without_writing_half_a_file(predictions, tmp_path) -> None:
    with Server(lambda call: status(401)) as server:
        done = mer_r1(
            "extract", "--predictions", predictions, "--reader", "m", "--reader-url", server.base_url,
            "--out", tmp_path / "o.jsonl",
        )  # fmt: skip
    assert "401, the key is not accepted" in str(done.exception)
    assert not (tmp_path / "o.jsonl").exists()


def test_the_tables_of_the_reference_through_the_commands(shared) -> None:
    folder = shared / "benchmarks" / "reference"
    for command, name in (("list-parse", "list_parse.json"), ("llm-reply", "llm_postprocess.json")):
        done = mer_r1("score", command, "--predictions", folder / name, "--json")
        assert json.loads(done.stdout) == json.loads((folder / name).read_text(encoding="utf-8"))


def test_tables_of_lists_and_objects(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text('["[a, b]", "[", null]')
    rows = json.loads(mer_r1("score", "list-parse", "--predictions", path, "--json").stdout)
    assert [row["out"] for row in rows] == [["a", "b"], "EXC IndexError", []]
    path.write_text('{"x": "Output: [a]"}')
    assert json.loads(mer_r1("score", "llm-reply", "--predictions", path, "--json").stdout) == {
        "x": {"in": "Output: [a]", "out": "[a]"}
    }
    assert "x: 'Output: [a]' -> '[a]'" in mer_r1("score", "llm-reply", "--predictions", path).stdout
    path.write_text('["a", 3]')
    assert "entry 1: expected a reply as a text" in str(mer_r1("score", "llm-reply", "--predictions", path).exception)


def test_the_tables_need_neither_torch_nor_openai(tmp_path) -> None:
    (tmp_path / "x.json").write_text('["[a]"]')
    program = (
        "import sys; from mer_r1.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'openai', 'transformers', 'pandas')))"
    )
    for command in ("list-parse", "llm-reply"):
        arguments = ["score", command, "--predictions", str(tmp_path / "x.json"), "--json"]
        assert subprocess.run([sys.executable, "-c", program, *arguments], check=False).returncode == 0
