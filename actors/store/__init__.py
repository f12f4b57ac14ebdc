"""A store: one durable replica on one node, and what it does for others and for itself.

``actor`` is its process: streams, and the one queue to the journal. ``opening`` opens that journal, ``contents`` knows what is
in it, ``places`` where each frame lies. ``reader`` reads back for those who ask, and keeps the indexes. ``scrubber`` finds what
went bad, ``thinner`` gives back the disk space of what was trimmed, ``acceptor`` votes in the register. No Ray.
"""
