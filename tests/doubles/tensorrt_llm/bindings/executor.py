"""Everything that the release of the chosen profile exports."""

from trtllm_double.options import profile
from trtllm_double.surface import SURFACE

__version__ = profile()["version"]
globals().update(SURFACE.names)
if "ExecutorConfig" in SURFACE.names:
    from trtllm_double.executor import ExecutorDouble as Executor

    __all__ = ["Executor", *SURFACE.names]
else:
    __all__ = list(SURFACE.names)
