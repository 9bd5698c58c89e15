"""Evaluation: FaceSim, motion, intervals and the report (Section 5.1, Tables 1 to 6)."""
