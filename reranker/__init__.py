"""Cross-encoders that rank candidate answers: made from logs, judged, and the pictures of searches."""
