"""``netsim regress``: two states of the code, base and head, measured in turns on one machine.

``states`` makes them, ``methods`` finds which of the named methods each of them has, ``measure`` runs them.
"""
