"""The log of a partition, kept on its stores and in the register.

``replicated_log`` is what a SessionActor sees of it. ``errands`` asks stores and the register what the writer wants to know,
``store_links`` keeps the connections, ``register_client`` speaks to the keepers of the register, ``mender`` gives back what
went bad on one store, ``where`` says where partitions are. No Ray.
"""
