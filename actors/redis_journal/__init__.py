"""A store's journal on a Redis server, behind the same interface as the one in files (``journal.interface``).

``place`` says which server, ``link`` speaks to one node, ``promise`` says whether it can keep a store's promise, ``nodes``
where a key lies, ``layout`` which keys there are and what is done to them in one step, ``replay`` what is read back,
``witness`` what a restored server is known by, ``opening`` the order in which a journal is opened, ``journal`` what is done
with an open one. No asyncio, no Ray.
"""
