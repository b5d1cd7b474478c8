"""Encoders: models that read whole texts, each token seeing all others, and write none."""
