"""Rewards: what a finished video is worth (Sections 4.1 and 4.2, Eq. 5 and 6)."""
