"""Sampling: sample(θ, x_T), its truncated gradient and the KL anchor (Eq. 3, 4 and 7)."""
