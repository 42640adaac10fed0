"""Decode state of Windows: per segment a ring of the last `before` keys. Bounded: segments x before.

Without a bound on `before` the rings hold all keys and double when one is full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.errors import require
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, RowsOf, ScoreTerm
from mapformers.kernels.run import window_attend
from mapformers.kernels.softmax import at_least_float32, default_scale, softmax_attend

FIRST_ROOM = 16  # keys of a ring without a bound, before it grows
PER_PLACE = ("keys", "values", "positions", "seen")

if TYPE_CHECKING:
    from mapformers.attention.state import Inputs


@dataclass
class RingState:
    """S rings of W places, and one place at the end where writes that must not happen go.

    keys [B, G, S W + 1, D], values [.., E], positions [B, G, S W + 1]
    seen [B, G, S W + 1] bool, whether a key may be seen; None = all may
    owner [B, G, S] the segment that a ring holds now, -1 = none; count [B, G, S] its keys so far
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    owner: Tensor
    count: Tensor
    window: int
    seen: Tensor | None = None

    @classmethod
    def empty(cls, plan: Windows, k: Tensor, v: Tensor) -> RingState:
        """Rings for k [B, G, n, D] and v [B, G, n, E]."""
        require(
            plan.after == 0, f"decode: a Windows plan needs after=0, got {plan.after}; use a causal layer"
        )
        window = FIRST_ROOM if plan.before is None else plan.before
        batch, groups, size = k.shape[0], k.shape[1], plan.segment_count * window + 1
        owner = torch.full((batch, groups, plan.segment_count), -1, device=k.device)
        return cls(
            keys=k.new_zeros(batch, groups, size, k.shape[-1]),
            values=v.new_zeros(batch, groups, size, v.shape[-1]),
            positions=owner.new_zeros(batch, groups, size),
            owner=owner,
            count=torch.zeros_like(owner),
            window=window,
            seen=None if plan.key_is_seen is None else owner.new_zeros(batch, groups, size, dtype=torch.bool),
        )

    def step(self, plan: Windows, new: Inputs, score: ScoreTerm | None) -> Attended:
        """Attend from the new tokens. One token reads its rings; several run as ranges over rings and
        new keys.
        """
        n = new.q.shape[2]
        query_segment = _with_copies(plan.query_segment, new.q, n)  # [B, H, n, r]
        key_segment = _with_copies(plan.key_segment, new.k, n)  # [B, G, n, r']
        if n > 1 and score is not None:
            return self._one_by_one(plan, new, score)
        if n == 1:
            self._insert(plan, key_segment, new)
            return self._read(plan, query_segment, new, score)
        attended = self._read_many(plan, query_segment, key_segment, new)
        self._insert(plan, key_segment, new)
        return attended

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        for name in (*PER_PLACE, "owner", "count"):
            held = getattr(self, name)
            setattr(self, name, None if held is None else held.index_select(0, index))

    def _grow(self, room: int) -> None:
        """Double the rings until they hold `room` keys each."""
        window = self.window
        while window < room:
            window *= 2
        rings = self.owner.shape[-1]
        for name in PER_PLACE:
            held = getattr(self, name)
            if held is None or window == self.window:
                continue
            kept = held[:, :, :-1].unflatten(2, (rings, self.window))  # [B, G, S, W, ..]
            wider = held.new_zeros(*kept.shape[:3], window, *kept.shape[4:])
            wider[:, :, :, : self.window] = kept
            setattr(self, name, torch.cat([wider.flatten(2, 3), held[:, :, -1:]], 2))
        self.window = window

    def _insert(self, plan: Windows, segment: Tensor, new: Inputs) -> None:
        """Write the new keys; a ring whose segment gives way to another starts again."""
        n, copies = segment.shape[2:]
        rings = self.owner.shape[-1]
        segment = segment.masked_fill(~new.is_real[:, None, :, None], -1).flatten(2)  # [B, G, n r']
        ring = segment % rings
        index = torch.arange(n * copies, device=segment.device).expand_as(segment)
        last = torch.full_like(self.owner, -1).scatter_reduce(
            2, ring, index.masked_fill(segment < 0, -1), "amax"
        )  # last new key of each ring
        owner = torch.where(last >= 0, segment.gather(2, last.clamp(min=0)), self.owner)
        kept = (segment >= 0) & (segment == owner.gather(2, ring))
        count = torch.where(owner == self.owner, self.count, 0)
        mine = F.one_hot(ring, rings) * kept.unsqueeze(-1)  # [B, G, n r', S]
        nth = count.gather(2, ring) + mine.cumsum(2).gather(3, ring.unsqueeze(-1)).squeeze(-1) - 1
        total = count + mine.sum(2)
        if plan.before is None:
            self._grow(int(total.max()))
        window = self.window
        written = kept & (nth >= total.gather(2, ring) - window)
        place = torch.where(written, ring * window + nth.clamp(min=0) % window, rings * window)
        self._write(place, new, copies)
        if self.seen is not None and plan.key_is_seen is not None:
            seen = plan.key_is_seen.expand(*segment.shape[:2], n).repeat_interleave(copies, 2)
            self.seen.scatter_(2, place, seen)
        self.owner, self.count = owner, total

    def _write(self, place: Tensor, new: Inputs, copies: int) -> None:
        keys, values = (x.repeat_interleave(copies, 2) for x in (new.k, new.v))
        positions = new.positions.repeat_interleave(copies, 1)[:, None].expand_as(place)
        self.keys.scatter_(2, place.unsqueeze(-1).expand(*place.shape, keys.shape[-1]), keys)
        self.values.scatter_(2, place.unsqueeze(-1).expand(*place.shape, values.shape[-1]), values)
        self.positions.scatter_(2, place, positions)

    def _read(self, plan: Windows, segment: Tensor, new: Inputs, score: ScoreTerm | None) -> Attended:
        """One query per row and head over the rings it names: segment [B, H, 1, r]."""
        batch, heads = segment.shape[:2]
        rings, window = self.owner.shape[-1], self.window
        group = torch.arange(heads, device=segment.device) * self.owner.shape[1] // heads
        segment = segment[:, :, 0]  # [B, H, r]
        ring = segment % rings
        row = torch.arange(batch, device=segment.device)[:, None, None]
        held = (self.owner[row, group[:, None], ring] == segment) & (segment >= 0)
        filled = self.count[row, group[:, None], ring] * held  # [B, H, r]
        places = torch.arange(window, device=segment.device)
        age = (filled.unsqueeze(-1) - 1 - places) % window  # 0 = the newest
        valid = ((places < filled.unsqueeze(-1)) & (age >= plan.skip)).flatten(2)  # [B, H, r W]
        place = (ring.unsqueeze(-1) * window + places).flatten(2)
        row, group = row, group[:, None]
        keys, values = self.keys[row, group, place], self.values[row, group, place]  # [B, H, r W, ..]
        if self.seen is not None:
            valid = valid & self.seen[row, group, place]
        scores = at_least_float32(new.q @ keys.transpose(-1, -2)) * default_scale(new.q.shape[-1])
        if score is not None:
            term = score.tile(
                Pairs(
                    batch=torch.arange(batch, device=place.device).view(-1, 1, 1, 1),
                    head=torch.arange(heads, device=place.device).view(1, -1, 1, 1),
                    query=new.positions[:, None, :, None],
                    key=self.positions[row, group, place].unsqueeze(2),
                    query_row=torch.zeros(1, 1, 1, 1, dtype=torch.long, device=place.device),
                )
            )
            scores = scores + term.to(scores.dtype)
        if plan.log_weight is not None:
            scores = scores + plan.log_weight.repeat_interleave(window, -1)
        return softmax_attend(scores, valid.unsqueeze(2), values)

    def _read_many(self, plan: Windows, query_segment: Tensor, key_segment: Tensor, new: Inputs) -> Attended:
        """Several new tokens: the keys of the rings, oldest first, then the new ones, as one Windows plan."""
        rings, window, copies = self.owner.shape[-1], self.window, key_segment.shape[-1]
        places = torch.arange(window, device=self.count.device)
        oldest = torch.where(self.count > window, self.count % window, 0).unsqueeze(-1)
        order = (oldest + places) % window  # [B, G, S, W]
        held = places < self.count.clamp(max=window).unsqueeze(-1)
        old_segment = torch.where(held, self.owner.unsqueeze(-1), -1).flatten(2)  # [B, G, S W]
        place = (torch.arange(rings, device=order.device)[:, None] * window + order).flatten(2)
        keys, values = (
            x.gather(2, place.unsqueeze(-1).expand(*place.shape, x.shape[-1]))
            for x in (self.keys, self.values)
        )
        key_segment = key_segment.masked_fill(~new.is_real[:, None, :, None], -1)
        old = F.pad(old_segment.unsqueeze(-1), (0, copies - 1), value=-1)
        seen = None
        if self.seen is not None and plan.key_is_seen is not None:
            fresh = plan.key_is_seen.expand(*key_segment.shape[:3])
            seen = torch.cat([self.seen.gather(2, place), fresh], 2)
        whole = replace(
            plan,
            query_segment=query_segment,
            key_segment=torch.cat([old, key_segment], 2),
            key_is_seen=seen,
        )
        scope = Scope(causal=True, query_start=rings * window)
        return window_attend(whole, new.q, torch.cat([keys, new.k], 2), torch.cat([values, new.v], 2), scope)

    def _one_by_one(self, plan: Windows, new: Inputs, score: ScoreTerm) -> Attended:
        """Score terms need the positions of the keys of each head, which ranges do not carry: step token
        by token.
        """
        outputs = []
        for t in range(new.q.shape[2]):
            one = slice(t, t + 1)
            part = replace(
                plan,
                query_segment=_slice(plan.query_segment, one),
                key_segment=_slice(plan.key_segment, one),
                log_weight=_slice(plan.log_weight, one),
                key_is_seen=_slice(plan.key_is_seen, one),
            )
            token = type(new)(
                new.q[:, :, one],
                new.k[:, :, one],
                new.v[:, :, one],
                new.positions[:, one],
                new.is_real[:, one],
            )
            outputs.append(self.step(part, token, RowsOf(score, row=t)))
        return Attended(torch.cat([o.output for o in outputs], 2), torch.cat([o.lse for o in outputs], 2))


def _with_copies(segment: Tensor | None, x: Tensor, n: int) -> Tensor:
    """Segments of the new tokens as [B, heads of x, n, copies]."""
    if segment is None:
        return torch.zeros(x.shape[0], x.shape[1], n, 1, dtype=torch.long, device=x.device)
    segment = segment if segment.dim() == 4 else segment.unsqueeze(-1)
    return segment.expand(x.shape[0], x.shape[1], -1, -1)


def _slice(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[:, :, rows]
