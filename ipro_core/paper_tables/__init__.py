"""The paper's Tables 1 to 6 and Figure 3 in miniature: all methods at equal compute, in one world."""
