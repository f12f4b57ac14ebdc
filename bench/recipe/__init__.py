"""The recipe that trilogue replaces, as a baseline: INCR, SET NX EX, XADD (and WAIT) on a Redis of its own."""
