"""Routing: which pack each input gets, or none; decided here, carried out by ``skillhub.compose.routed``.

A pack brings a routing card, made when it was packed from its example prompts and the base's early hidden states
(``cardmaking``, ``cards``). Routers turn a batch at prefill into decisions (``decisions``): by cards (``cardrouter``), by the
weights alone (``arrow``), or as a small classifier was trained (``classifier``).
"""

from skillhub.routing.choosing import find_router

__all__ = ["find_router"]
