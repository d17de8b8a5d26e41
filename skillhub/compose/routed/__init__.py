"""Routed packs: each row of a batch is computed with the pack that fits it, or as the base computes it.

``graft(model, packs, mode="routed")`` comes here. The model's weights stay those of the base; the modules that packs change get a
:class:`~skillhub.compose.routed.sites.Site` in place of their ``forward``, the modules that callers call an
:class:`~skillhub.compose.routed.entries.Entry`, which decides.

**When rows are decided, and how long that holds.** The decision belongs to the call and its cache, never to the model:

=============================  ======================================================================================================
``pack_choices=[…]``           of a forward or of ``generate``: a pack's name or None a row, or a :class:`Decision`. Comes before all else.
``with choose(model, […])``    the same for what is decided inside the block; what a cache knows already stays.
a cache with a decision        keeps it. It follows ``reorder_cache``, ``batch_repeat_interleave``, ``batch_select_indices`` and copies;
                               ``crop`` (assisted decoding) leaves it; ``reset`` drops it.
an empty cache, or none        the router decides, from this call's tokens; the cache (the one that the model makes, too) keeps it.
a filled cache without one     an error: nothing says what its tokens were. ``pack_choices`` says so, and the cache keeps that.
``generate``                   decides by the prompt as it is given, once: before rows are repeated for beams or several answers, and
                               whatever the cache, chunks or an assistant make of it.
chunked prefill                the first chunk that has any token of a row decides for the row.
``use_cache=False``            every forward decides anew; inside one ``generate`` the first decides for all.
encoder-decoder                the encoder's input decides; its outputs and then the decoder's cache keep it. Encoder outputs of
                               unknown origin need ``pack_choices``.
no cache (BERT)                every call decides.
beams, several answers         the rows of a prompt stand together, and each gets the decision for its prompt.
padding                        either side. A row of nothing but padding counts as the base until it has tokens.
assisted decoding              the assistant is a model of its own, which may be routed too; each has its own ``choose`` and decision.
threads, async tasks           independent; ``last_decision`` tells each its own.
several sequences in a row     an error (continuous batching, packed sequences with ``cu_seq_lens``).
a pack that is switched off    (``skillhub.disable``) is not chosen: a router by cards, prototypes or a classifier chooses among the
                               others, so that a row gets the next best whose threshold it passes, or the base; what any other router
                               (a function, labels) chooses of it is the base. ``pack_choices`` that name it are an error, and so is a
                               cache (or a block, or an encoder's output) that decided for it, until it is switched on again or
                               ``pack_choices`` say otherwise; other caches go on.
weights that change            (``skillhub.set_weights``): caches keep their decisions. Their next tokens are computed with the new
                               weights; what they hold of earlier tokens was computed with the old ones, as with any model whose
                               weights change.
packs that come and leave      decisions for the packs that stay go on; for one that left (``skillhub.ungraft``) they are an error.
=============================  ======================================================================================================

**What else a routed model does.** ``save_pretrained`` and ``state_dict`` give the base. A deep copy is a routed model of its own that
shares the packs' weights. ``.to(device or dtype)`` takes the packs along at the next forward. Training mode is an error at the next
forward, as are resized embeddings; gradients of inputs go through the packs, the packs themselves get none. ``torch.compile`` works,
but the model runs uncompiled while packs are routed on it. Models on several devices are refused. ``ungraft`` takes everything out.
Packs come, leave, weigh otherwise and are switched off and on between forwards: not while another thread is in one. A pack that is off
keeps its memory, so that switching takes no time.

**How rows are computed.** Rows keep their places throughout the model, so that a cache has the rows that its owner knows.
*Grouped*: a module sorts its rows by pack (the order is worked out once a batch), runs once a group with that pack's weights, which are
the bits of the pack grafted fused, and puts the rows back. *Factored*: a linear module runs once on all rows; then the packs' low-rank
factors, side by side in one matrix (those of query, key and value, and of gate and up, too), are multiplied with the input, masked or
weighted row by row, and added. Both serve one batch, so full-weight packs and adapters may share it. A batch whose rows agree runs the
modules with the one pack's weights, where those are in memory, and with its factors else.

Parameters that a module with others in it reads itself (attention sinks, the states and convolutions of linear attention, as in GPT-OSS,
Mamba and Qwen3.5) cannot differ from row to row: a batch with several packs that change such is an error, one whose rows agree is not.
What is called outside of the model's own forwards, such as ``lm_head`` alone, computes as the base.

**Soft routing.** A decision with a ``mixture`` gives each row the base plus the weighted sum of packs. That is exact (within rounding) for
linear modules, embeddings, norms and position biases; a pack that changes experts or their routers is refused in it.
"""

from __future__ import annotations

from skillhub.compose.routed.changes import routed_packs, ungraft_routed
from skillhub.compose.routed.grafting import graft_routed
from skillhub.compose.routed.inspection import choose, decide, decisions, last_decision

__all__ = ["choose", "decide", "decisions", "graft_routed", "last_decision", "routed_packs", "ungraft_routed"]
