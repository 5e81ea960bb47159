"""The OpenVINO target: export to IR, weight compression, tokenizer models."""
