"""lm-eval's generation tasks over chat and completions, with a task of its own: nothing is fetched."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}

import lm_eval
import lm_eval.tasks
from common import URL, report

TASK = """\
task: capital
dataset_path: json
dataset_kwargs: {{data_files: {{test: {}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function score.found
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 24, do_sample: false, temperature: 0}}
metric_list: [{{metric: found, aggregation: mean, higher_is_better: true}}]
"""
SCORE = """\
def found(doc, results):
    return {"found": float(doc["answer"] in results[0])}
"""


def accuracy(model: str, path: str, **more: object) -> float:
    """The share of the task's questions whose answer was found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = [
            {"question": "What is the capital of France?", "answer": "Paris"},
            {"question": "The capital of France is", "answer": "Paris"},
        ]
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
        (folder / "score.py").write_text(SCORE, encoding="utf-8")
        (folder / "capital.yaml").write_text(TASK.format(data), encoding="utf-8")
        found = lm_eval.simple_evaluate(
            model=model,
            model_args={
                "model": "llm", "base_url": f"{URL}/{path}", "num_concurrent": 2, "max_retries": 1, "timeout": 180,
                "tokenizer_backend": None, "tokenized_requests": False,
            },
            tasks=["capital"],
            task_manager=lm_eval.tasks.TaskManager(include_path=name, include_defaults=False),
            bootstrap_iters=0,
            **more,
        )  # fmt: skip
    return float(found["results"]["capital"]["found,none"])


def chat() -> None:
    assert accuracy("local-chat-completions", "chat/completions", apply_chat_template=True) > 0


def completions() -> None:
    assert accuracy("local-completions", "completions") > 0


report("lm-eval", {"chat": chat, "completions": completions})
