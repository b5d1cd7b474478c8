"""Puts tests/ on the path, so that helpers such as models_factory.py import by name."""
