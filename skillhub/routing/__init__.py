"""Routing: which pack each input gets, or none; decided here, carried out by ``skillhub.compose.routed``."""
