"""Of the PyTorch flow."""
