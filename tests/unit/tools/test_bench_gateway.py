"""What the gateway's benchmark says of its figures."""

from __future__ import annotations

from bench import gateway


def test_a_row_has_the_median_and_the_spread_of_what_is_compared_and_not_what_it_is_made_of() -> None:
    figures = {
        "gateway over gRPC": [0.96, 0.98, 0.97],
        "generate_stream over gRPC": [0.9, 0.8, 0.85],
        "added TTFT, ms": [2.0, 1.0, 3.0],
        "CPU a token, µs": [30.0, 31.0, 29.0],
        "grpc tokens/s": [100.0, 101.0, 102.0],
    }
    assert gateway.cells(figures) == ("0.97 (0.96 to 0.98) | 0.85 (0.80 to 0.90) | 2.0 (1.0 to 3.0) | 30 (29 to 31)")
