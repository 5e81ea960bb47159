"""Every page leads somewhere: its links and anchors resolve, and every path of the repository that it names exists."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OURS = ("py", "sh", "md", "toml", "json", "svg", "csv", "txt", "pbtxt", "yaml", "yml", "cmake", "jinja")

# Files that a page may name although this repository has none of that name: those of checkpoints and engines, and what
# commands write.
ELSEWHERE = re.compile(
    r"(tokenizer|config|generation_config|adapter_config|quant_cfg|calibration|engine|trtllm-build|results|report|"
    r"model\.lora_config)"
    r"\.(json|csv|html|md)|results\.csv|end_to_end_grpc_client\.py|requirements\.txt"
)


@cache
def tracked() -> frozenset[str]:
    """Every file git knows of or would, and every folder of one."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    files = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    return frozenset(files | {str(parent) for name in files for parent in Path(name).parents})


def words(text: str) -> list[str]:
    """Words inside backticks and fenced blocks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [word.strip("'\"(),;:.") for part in [*fenced, *re.findall(r"`([^`]+)`", rest)] for word in part.split()]


@cache
def top_folders() -> frozenset[str]:
    return frozenset(name for name in tracked() if "/" not in name and (ROOT / name).is_dir())


@cache
def endings() -> frozenset[str]:
    """Every path and every end of one that begins at a folder or file: `a/b.py` gives `a/b.py` and `b.py`."""
    parts = [name.split("/") for name in tracked()]
    return frozenset("/".join(path[start:]) for path in parts for start in range(len(path)))


def is_path(word: str) -> bool:
    """Whether a word names something of this repository: a path below one of its folders, or a file of our kinds."""
    if re.search(r"[<>{}$…=|]|://", word) or word.startswith(("/", "~", ".cache", ".venv", "-")):
        return False
    path = word.split("::")[0].rstrip("/")
    name = path.rsplit("/", 1)[-1]
    placeholder = re.fullmatch(r"[A-Z_-]+\.\w+", name) is not None and name not in ("README.md", "CHANGELOG.md")
    if placeholder or ELSEWHERE.fullmatch(name):
        return False
    named = "/" in path and path.removeprefix("./").split("/")[0] in top_folders()
    return named or re.fullmatch(rf"[\w./*-]+\.({'|'.join(OURS)})", path) is not None


def exists(word: str, page: Path) -> bool:
    path = word.split("::")[0].rstrip("/").removeprefix("./")
    if "*" in path:
        return any(any(start.glob(path)) for start in (page.parent, ROOT, ROOT / "docs"))
    return (page.parent / path).exists() or path in endings()


def built(word: str) -> bool:
    """What a build puts into the model repository, which git ignores."""
    return re.fullmatch(r"(\./)?model_repository/\w+/1/engine(/.*)?", word) is not None


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        slug, number = base, 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [target for target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page: Path) -> None:
    dead = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        lost = str(there.relative_to(ROOT)) not in tracked()
        if lost or (anchor and (there.suffix != ".md" or anchor not in slugs(there))):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_it_names_exists(page: Path) -> None:
    named = {word for word in words(page.read_text("utf-8")) if is_path(word)}
    assert sorted(word for word in named if not exists(word, page) and not built(word)) == []


def test_every_page_that_code_names_exists() -> None:
    dead = []
    for name in sorted(tracked()):
        path = ROOT / name
        if path.suffix in (".py", ".sh", ".toml", ".pbtxt", ".yaml", ".txt", "") and path.is_file():
            for page in re.findall(r"\bdocs/[\w./-]*\w", path.read_text("utf-8")):
                if page not in tracked() and not name.startswith("tests/unit/docs/"):
                    dead.append(f"{name}: {page}")
    assert dead == []


# Files that code names and that are somebody else's, or made while it runs.
NOT_OURS = {
    "FILE.svg", "PAGE.md", "report.md", "builder.py", "tensorrt_llm/builder.py", "modeling_utils.py", "result.py",
    "sampler.py", "llmapi/utils.py", "mutants_plugin.py", "triton_python_backend_utils.py", "hf_lora_convert.py",
    "keda.sh", "llama.cpp/convert_hf_to_gguf.py", "additional_outputs_test.py", "end_to_end_grpc_client.py",
    "L0_backend_vllm/enabled_stream/enabled_stream_test.py", "L0_backend_vllm/vllm_backend/vllm_backend_test.py",
    "L0_backend_vllm/request_cancellation/request_cancellation_test.py",
}  # fmt: skip


def test_every_file_that_code_names_exists() -> None:
    """In docstrings, comments and sentences for users alike."""
    lost = []
    for name in sorted(tracked()):
        path = ROOT / name
        code = path.suffix in (".py", ".sh", ".toml", ".pbtxt", ".yaml", ".in", ".cmake", ".txt", "") and path.is_file()
        if not code or name.startswith(("tests/", "requirements/")):
            continue
        text = path.read_text("utf-8")
        named = re.findall(r"(?<![\w/.{$*}-])((?:\w[\w.-]*/)*\w[\w-]*\.(?:py|sh|md|svg))\b(?!\()", text)
        lost += [f"{name}: {word}" for word in named if word not in endings() and word not in NOT_OURS]
    assert lost == []


def test_the_check_sees_what_is_not_there(tmp_path: Path) -> None:
    page = ROOT / "docs" / "map.md"
    assert is_path("scripts/nowhere.py")
    assert not exists("scripts/nowhere.py", page)
    assert is_path("serving/nowhere.py")
    assert not exists("serving/nowhere.py", page)
    assert exists("serving/delivery.py", page)
    assert not exists("tests/unit/test_guides_*.py", page)
    made = tmp_path / "page.md"
    made.write_text("# One `two` — three\n## A\n## A\n```\n# no\n```\n", encoding="utf-8")
    assert slugs(made) == {"one-two--three", "a", "a-1"}
