"""What may be wrong with an installation, its settings, its folders and the registries: one check each, with a hint.

Nothing here imports torch or any other large library, and nothing but the last few checks uses the network.
"""

from __future__ import annotations

from skillhub import settings
from skillhub.diagnosis.checks import OK, PROBLEM, WARNING, Check
from skillhub.diagnosis.installation import check_installation
from skillhub.diagnosis.networks import check_networks
from skillhub.diagnosis.places import check_places
from skillhub.environments import find_project

__all__ = ["OK", "PROBLEM", "WARNING", "Check", "diagnose"]


def diagnose(*, offline: bool = False) -> list[Check]:
    """Make all checks, those of the network last.

    Args:
        offline: leave out what needs the network; so do the variables that forbid it.
    """
    project = find_project()
    checks = [*check_installation(), *check_places(project)]
    return [*checks, *check_networks(project, offline=offline or settings.offline())]
