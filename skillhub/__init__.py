"""The package manager for SkillPacks: compressed fine-tunes that graft onto their base model.

Importing this package is cheap: each public name is loaded on first use (PEP 562), so the command line answers
before torch would have been imported.
"""

from __future__ import annotations

__version__ = "0.1.0.dev0"
