"""A partition's owner, or a spare: it serialises its sessions' messages and answers their readers.

``actor`` is its process. ``reads`` checks and answers what readers ask, ``readers`` tells those who follow, ``lookups`` learns
of cold sessions from stores, ``retention`` lets go what is too old. No Ray.
"""
