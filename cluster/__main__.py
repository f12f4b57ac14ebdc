"""`python -m trilogue.cluster` is the `trilogue` script."""

from trilogue.cluster.commands.cli import main

main()
