"""Connections: reading bodies, deciding statuses, streaming, clients that leave."""
