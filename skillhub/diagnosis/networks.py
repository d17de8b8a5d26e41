"""Checks of what is beyond this machine: proxies, registries, their clocks, and the tokens for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from skillhub import hub
from skillhub.diagnosis.checks import OK, PROBLEM, WARNING, Check, from_error
from skillhub.environments import Environment, read_project
from skillhub.errors import AuthError, SkillhubError
from skillhub.redaction import presentable
from skillhub.registries import find_registries

_PROXIES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
_MOST_AHEAD_SECONDS = 60.0
_PARALLEL = 8


def check_networks(project: Environment | None, *, offline: bool) -> Iterator[Check]:
    """Yield the checks of proxies, registries and tokens.

    Args:
        project: whose registries count as well.
        offline: ask no server.
    """
    yield _check_proxies()
    yield from _check_token_files()
    try:
        entries = read_project(project).registry if project else []
    except SkillhubError:  # told by another check
        entries = []
    try:
        registries = find_registries(entries).all
    except SkillhubError as error:
        yield from_error("registries", error)
        return
    if offline:
        yield Check("registries", OK, "Offline: none was asked.")
        return
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for checks in pool.map(_check_registry, registries):
            yield from checks


def _check_proxies() -> Check:
    found = {name: value for name in _PROXIES if (value := os.environ.get(name) or os.environ.get(name.upper()))}
    if not found:
        return Check("proxies", OK, "None is set.")
    told = presentable(", ".join(f"{name.upper()}={value}" for name, value in found.items()))
    wrong = [name for name, value in found.items() if name != "no_proxy" and "://" not in value]
    if wrong:
        hint = f"Write it with its scheme: {wrong[0].upper()}=http://…."
        return Check("proxies", WARNING, f"{told}: an address has no scheme.", hint)
    return Check("proxies", OK, f"{told}.")


def _check_token_files() -> Iterator[Check]:
    for path in hub.exposed_token_files():
        told = f"Others on this machine may read {path}, which holds tokens."
        yield Check("tokens", WARNING, told, f"Close it: chmod 600 {path}. Then make new tokens.")


def _check_registry(registry: hub.Registry) -> list[Check]:
    name = f"registry {registry.name}"
    if registry.folder is not None:
        found = hub.is_vendored(registry.folder)
        told = f"{registry.folder} is {'a' if found else 'no'} vendored folder."
        return [Check(name, OK if found else PROBLEM, told, "" if found else "Correct its address in config.toml.")]
    try:
        answer = hub.probe(registry)
    except SkillhubError as error:
        return [from_error(name, error)]
    if not answer.looks_right:
        told = f"{registry.address} answers with {answer.status}, and not like a Hugging Face Hub."
        return [Check(name, PROBLEM, told, "Correct its address, or ask its operator.")]
    return [Check(name, OK, f"{registry.address} answers."), *_check_clock(registry, answer), *_check_token(registry)]


def _check_clock(registry: hub.Registry, answer: hub.Answer) -> Iterator[Check]:
    ahead = answer.ahead_seconds or 0.0
    if abs(ahead) > _MOST_AHEAD_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        told = f"This machine's clock is {abs(ahead):.0f} seconds {way} that of {registry.address}."
        yield Check("clock", WARNING, told, "Set the clock: cool-downs, cut-offs and signed addresses depend on it.")


def _check_token(registry: hub.Registry) -> Iterator[Check]:
    name = f"token {registry.name}"
    if not registry.token:
        yield Check(name, OK, f"There is none for {registry.address}.", f"To publish there: {registry.login_command}.")
        return
    others = hub.registries_of_token(registry.token, but=registry.endpoint)
    if others:  # then it is not tried here
        told = f"The token for {registry.address} is the one that was saved for {others[0]}."
        yield Check(name, PROBLEM, told, f"Give each its own: {registry.login_command}.")
        return
    try:
        account = hub.fetch_account(registry)
    except AuthError:
        told = f"{registry.address} does not accept the token for it; perhaps it was revoked, or is another registry's."
        variable = hub.token_variable() if registry.name == hub.HUB else None
        yield Check(name, PROBLEM, told, f"Correct {variable}." if variable else f"Log in: {registry.login_command}.")
    except SkillhubError as error:
        yield from_error(name, error)
    else:
        scope = f", scope {account.scope}" if account.scope else ""
        yield Check(name, OK, f"{registry.address} knows you as {account.name}{scope}.")
