"""A script that serves adapters beside their base with vLLM, each as a model of its own.

Flags and limits are those of vLLM's documentation ("LoRA Adapters") and of its ``LoRAConfig``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

SCRIPT_FILE = "serve.sh"

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be; vLLM takes memory for that rank in every layer."""

MAX_RANK = RANKS[-1]


def launch_script(model: str, adapters: Mapping[str, int]) -> str:
    """Return a bash script that serves adapters lying in folders of their names beside it.

    Args:
        model: the base model, a repository or folder; whoever runs the script may name another one in ``MODEL``.
        adapters: name → rank, of 1 to :data:`MAX_RANK`; letters, digits, ``.``, ``_`` and ``-`` only.
    """
    rank = next(allowed for allowed in RANKS if allowed >= max(adapters.values()))
    paths = [f'    "{name}=$folder/{name}" \\' for name in adapters]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# Serves a base model and these adapters with vLLM. A request names the adapter that answers it as its `model`;",
            "# vLLM does not choose by content: ask `skillhub route` which one fits a prompt, or let the client choose.",
            "# Further options are passed on: ./serve.sh --port 8001. MODEL=… serves the base from elsewhere.",
            "set -euo pipefail",
            'folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
            f"model={shlex.quote(model)}",
            'exec vllm serve "${MODEL:-$model}" \\',
            "  --lora-modules \\",
            *paths,
            "  --enable-lora \\",
            f"  --max-loras {len(adapters)} \\",
            f"  --max-lora-rank {rank} \\",
            '  "$@"',
            "",
        ]
    )
