"""OpenAI's /v1/responses as far as it needs no store: items in, items out, named events between."""
