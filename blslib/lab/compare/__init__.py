"""How contenders are compared: who takes part, in which order, on which clock, with which intervals."""
