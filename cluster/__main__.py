"""`python -m trilogue.cluster` is the `trilogue` script."""

from trilogue.cluster.cli import main

main()
