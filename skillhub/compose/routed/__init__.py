"""Routed packs."""

from skillhub.compose.routed.grafting import graft_routed, routed_packs, ungraft_routed

__all__ = ["graft_routed", "routed_packs", "ungraft_routed"]
