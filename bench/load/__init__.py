"""The load: what is sent, the process that sends it, and the judge of what comes back."""
