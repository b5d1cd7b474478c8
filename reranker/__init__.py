"""Rankers of candidate answers: their labels, finetuning, evaluation and export, and pictures of searches."""
