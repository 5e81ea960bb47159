"""What the sampler looks at in a request (stored copy 57366693742)."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtilsSamplingParams:
    """Of its fields, those of plain sampling."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
