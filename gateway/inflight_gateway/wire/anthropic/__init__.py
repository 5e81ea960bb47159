"""Anthropic's /v1/messages: requests become a conversation in OpenAI's form, answers blocks of content."""
