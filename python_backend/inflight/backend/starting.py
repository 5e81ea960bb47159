"""Which engine a model runs: found with little reading, so that it loads while tokenizer and templates are read."""

from __future__ import annotations

from pathlib import Path

from inflight.backend.served import ServedEngine
from inflight.engine_process.supervisor import Supervisor
from inflight.engines.factory import resolve_engine
from inflight.engines.python import ask, choose_python, python_executable
from inflight.engines.spec import WorkerSpec
from inflight.errors import LoadError, quoted
from inflight.model.files import is_folder, path_of, text_of
from inflight.model.parameters import ModelConfig


class Starting:
    """The engine of a model, chosen and not started: `supervisor.launch()` lets it load."""

    def __init__(self, config: ModelConfig, version_folder: Path) -> None:
        """Raises `LoadError` for an engine directory that is not there, or that no engine here can run."""
        folder = version_folder / path_of(config.engine_dir)
        if not is_folder(folder):
            raise LoadError(
                f"there is no engine directory {quoted(config.engine_dir)} in the model's version folder; build one "
                "with python -m build_engine build MODEL --target openvino --quantization int8 --output DIR."
            )
        self.folder = folder.resolve()
        self.served = ServedEngine(self.folder)
        self.python = choose_python(version_folder, config.engine_python)
        self.engine = resolve_engine(
            config.engine, self.folder, lambda names: ask(self.python or python_executable(), names).packages
        )
        options = dict(config.engine_options)
        self.supervisor = Supervisor(
            WorkerSpec(self.engine, text_of(self.folder), options, config.max_running, self.python),
            load_timeout_s=config.load_timeout_s,
            stall_timeout_s=config.stall_timeout_ms / 1000,
            max_restarts=config.max_restarts,
            changed=self.served.change,
        )

    def stop(self) -> None:
        """End the engine, and let its directory go."""
        self.supervisor.stop()
        self.served.close()
