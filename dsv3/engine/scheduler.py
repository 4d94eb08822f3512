"""Which sequences run in the next step, and how many tokens each feeds.

First come, first served. Every running sequence that decodes gets its token (and its drafts) in every step; what is
left of the step's token budget goes to prompts, oldest first, in chunks. So a long prompt never stops the others from
talking. A sequence gets the pages of its whole prompt when it is admitted and one page at a time after that. Where none
is left, the youngest running sequence gives all of its pages back and later computes them again (preemption by
recompute): its tokens stay, so its output does not change, and the oldest always advances.
"""

from collections import deque

from dsv3.engine.blocks import PageAllocator
from dsv3.engine.sequence import Sequence


class Scheduler:
    """Owns the queue, the running list (oldest first) and, through the allocator, every sequence's pages.

    lookahead: cache positions beyond the fed tokens that drafting writes in the same step.
    """

    def __init__(
        self, allocator: PageAllocator, *, max_batch_size: int, max_step_tokens: int, lookahead: int = 0
    ) -> None:
        self.allocator = allocator
        self.max_batch_size = max_batch_size
        self.max_step_tokens = max_step_tokens
        self.lookahead = lookahead
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a request. Raises CapacityError where it could not finish even with the whole cache to itself."""
        self.check_fits(sequence)
        self.waiting.append(sequence)

    def check_fits(self, sequence: Sequence) -> None:
        self.allocator.check_fits(sequence.max_len + self.lookahead)

    def schedule(self) -> list[tuple[Sequence, int]]:
        """The next step: sequences and the number of tokens (pending ones, then drafts) that each feeds."""
        plan: list[tuple[Sequence, int]] = []
        running = self.running
        preempted = False
        # Decoding comes first: prompts share what it leaves of the budget.
        budget = self.max_step_tokens
        for seq in running:
            if len(seq.token_ids) - seq.n_computed == 1:
                budget -= 1 + len(seq.drafts)
        i = 0
        while i < len(running):  # the list may lose its tail while we walk
            seq = running[i]
            n = len(seq.token_ids) - seq.n_computed
            if n == 1:
                n += len(seq.drafts)
            else:
                n = min(n, budget)
                budget -= n
            needed = seq.n_computed + n + self.lookahead
            while len(seq.pages) * self.allocator.page_size < needed and not self.allocator.grow(seq.pages, needed):
                preempted = True
                self._preempt_youngest()
                if len(running) == i:  # it was the youngest itself
                    return plan
            if n:
                plan.append((seq, n))
            i += 1
        if not preempted and self.waiting:
            self._admit(plan, budget)
        return plan

    def _admit(self, plan: list[tuple[Sequence, int]], budget: int) -> None:
        while self.waiting and len(self.running) < self.max_batch_size and budget > 0:
            seq = self.waiting[0]
            if not self.allocator.grow(seq.pages, len(seq.token_ids) + self.lookahead):
                return  # nobody overtakes the head of the queue
            self.running.append(seq)
            self.waiting.popleft()
            n = min(seq.n_pending, budget)
            budget -= n
            plan.append((seq, n))

    def _preempt_youngest(self) -> None:
        seq = self.running[-1]
        self.allocator.release(seq.pages)
        seq.restart()
        seq.preemptions += 1
        self.n_preemptions += 1
        self.waiting.appendleft(seq)
        self.running.pop()

    def remove(self, sequence: Sequence) -> None:
        """A sequence is finished or abandoned: its pages are free again."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.allocator.release(sequence.pages)

    def recover(self) -> None:
        """A step was cut off half-way, so no page's content and no count can be trusted: everybody computes anew.

        Sequences are appended to their new list before they leave the old one, so a cut can double one but lose none.
        """
        everybody = dict.fromkeys([*self.running, *self.waiting])
        for seq in everybody:
            seq.pages.clear()
            seq.restart()
        self.running.clear()
        self.waiting = deque(seq for seq in everybody if seq.finish_reason is None)
        self.allocator.reset()
