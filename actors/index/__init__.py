"""Where each session's messages lie in a store (design §9): derived from the journal, and disposable.

entries     where one record lies; the entries of a session, packed
recent      what the newest frames hold, in memory
catalogue   all frames before them, in an SQLite file: segments, and what they say of a session
segments    how the file is written: a segment from memory, one from several
partition   one partition's index: the catalogue and what is recent, asked as one
keeper      all partitions of one store: what is in memory is bounded, and what does not fit the journal is thrown away
"""

from __future__ import annotations
