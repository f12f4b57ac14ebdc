"""The commands: what a user types, what is shown, and the judge of `verify`. Only `up` and `launch` need Ray."""
