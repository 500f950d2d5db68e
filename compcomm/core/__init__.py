"""The contracts, and what they are made of: layouts, payloads, headers, state, collectives, deferred results."""
