"""Autoregressive and self-speculative decoding of a Llama."""
