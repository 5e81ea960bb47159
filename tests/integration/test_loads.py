"""Loads through the real stub, whose Python takes ASCII for the encoding of everything: texts and names that are not
ASCII are read as they are, and what is damaged is one sentence and harms no other model.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from inflight_tools.common.layout import ENGINE
from inflight_tools.common.report import Failure
from inflight_tools.server.server import Server, ServerConfig
from tests.conftest import MakeServer
from tests.harness.damage import FILES, copy_files, damage
from tests.harness.http_client import HttpClient
from tests.harness.repository import write_model

LARGE = tuple(path.name for path in ENGINE.glob("openvino_*")) if ENGINE.is_dir() else ()
TEMPLATE = "{# Grüße, 你好 #}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] }} «für»{% endfor %}"
COMMENT = "# Das Modell für 你好\n"


def accented(folder: Path) -> Path:
    """The built engine in a folder of such a name, all its texts with such letters."""
    copy_files(ENGINE, folder, linked=LARGE)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        text = json.dumps({**content, "note": "Größe 你好"}, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    manifest = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
    manifest["source"]["name"] = "größe/模型"
    sizes = {entry["path"]: entry for entry in manifest["files"]}
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        sizes[name]["bytes"] = (folder / name).stat().st_size
    (folder / "engine.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.mark.parametrize("engine", ["simulated", "openvino"])
def test_texts_and_names_beyond_ascii_are_read_under_the_locale_c(
    make_server: MakeServer, tmp_path: Path, engine: str
) -> None:
    folder = accented(tmp_path / "modèle-模型")
    (tmp_path / "vorlage-ü.jinja").write_text(TEMPLATE, encoding="utf-8")
    parameters = {"engine_dir": str(folder), "engine": engine, "chat_template": str(tmp_path / "vorlage-ü.jinja")}
    environment = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}
    server = make_server({"llm": parameters}, pbtxt=COMMENT, environment=environment)
    http = HttpClient(server.http_url)
    messages = json.dumps([{"role": "user", "content": "Grüße, 你好"}], ensure_ascii=False)
    status, answer = http.generate(messages=messages, max_tokens=3, exclude_input_in_output=False)
    assert status == 200, answer
    assert answer["text_output"].startswith("<|user|>Grüße, 你好 «für»")
    assert "Traceback" not in server.log_text()


def test_a_repository_beyond_ascii_and_one_behind_a_plain_link_load(tmp_path: Path) -> None:
    """What `serve` refuses is what Triton cannot start; the way out that it names is one."""
    write_model(tmp_path / "mes modèles", "llm", {"engine": "simulated"})
    (tmp_path / "modèles").symlink_to(tmp_path / "mes modèles")
    with pytest.raises(Failure, match="a blank in the path"):
        Server(ServerConfig(repository=tmp_path / "mes modèles"))
    config = ServerConfig(repository=tmp_path / "modèles", log=tmp_path / "log", drain_timeout_s=0.0)
    with Server(config) as server:
        server.wait_ready(60.0)
        assert HttpClient(server.http_url).generate(text_input="Grüße", max_tokens=2)[0] == 200


def test_such_a_name_that_leads_nowhere_is_said_as_it_is_written(make_server: MakeServer) -> None:
    server = make_server({"llm": {"engine_dir": "modèle", "engine": "simulated"}}, ready=False)
    server._started().wait(60)
    assert "there is no engine directory 'modèle'" in server.log_text()
    assert "Traceback" not in server.log_text()


@pytest.fixture
def serving(make_server: MakeServer) -> Server:
    return make_server({"llm": {}}, arguments=("--model-control-mode=explicit",))


@pytest.mark.parametrize("count", [5, pytest.param(40, marks=pytest.mark.full)])
def test_a_damaged_engine_is_one_sentence_and_harms_no_other_model(serving: Server, count: int) -> None:
    http = HttpClient(serving.http_url)
    refused = 0
    for number in range(count):
        model = write_model(serving.config.repository, f"damaged{number}", {"engine": "auto"})
        engine = model / "1" / "engine"
        engine.unlink()
        copy_files(ENGINE, engine, linked=tuple(set(LARGE) - {"openvino_model.xml"}))
        what = damage(engine, number, (*FILES[:2], *FILES[3:], "engine.json", "openvino_model.xml"))
        before = len(serving.log_text())
        status, _ = http.call("POST", f"/v2/repository/models/{model.name}/load", b"{}")
        said = serving.log_text()[before:]
        if status == 200:
            assert http.call("POST", f"/v2/repository/models/{model.name}/unload", b"{}")[0] == 200
        else:
            refused += 1
            sentence = re.search(rf"model {model.name} cannot be loaded: (.*)", said)
            assert sentence is not None, f"{what}:\n{said}"
            assert 20 < len(sentence[1]) < 900, what
            assert "nobody has foreseen" not in sentence[1], what
        assert "Traceback" not in said, f"{what}:\n{said}"
        shutil.rmtree(model, ignore_errors=True)
    assert refused > count / 4
    status, answer = http.generate(text_input="still here", max_tokens=2)
    assert status == 200, f"{answer}\n{serving.log_text()[-3000:]}"
