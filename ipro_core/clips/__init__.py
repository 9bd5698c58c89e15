"""Clips: real videos in, the paper's ground truth (Section 5.1)."""
