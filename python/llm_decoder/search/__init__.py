"""Search over answers: beams, best of n, and the tree that a search leaves behind."""
