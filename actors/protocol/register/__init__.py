"""The register (design §7): small values with compare-and-set, kept by a majority of the stores of a *charter*.

``votes`` is what one acceptor decides, ``charter`` who the acceptors are, ``proposal`` one operation of one proposer. CASPaxos
(Rystsov 2018). Pure: no clock, no randomness, no connections; ``trilogue.actors.store.acceptor`` keeps the votes on disk, and
``trilogue.actors.replication.register_client`` carries the rounds over the wire.
"""
