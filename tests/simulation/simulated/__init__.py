"""A whole partition in one thread: network, disks, crashes and clocks from one seed, around the product's pure machines."""
