"""The protocol core: events in, effects out. It knows no Ray, no asyncio, no clock, no randomness and no files."""
