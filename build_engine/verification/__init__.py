"""The ``verify`` command: perplexity, KL divergence and greedy agreement of an artifact against its source."""
