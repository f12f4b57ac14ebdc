"""Sending: from the desk where a message is handed over, by its lane, into the flow of its partition, to its answer."""
