"""Who owns which page of the latent cache.

The cache is one pool of pages of ``page_size`` tokens, and a page is the same page in every layer. A sequence holds a
list of page numbers, its page table: token i lies in page ``table[i // page_size]`` at offset ``i % page_size``. Paging
means that memory is taken as sequences grow and no two requests need to be adjacent, so none is wasted on lengths that
never come.
"""

from dsv3.errors import CapacityError


class PageAllocator:
    """Hands out page numbers 0..n_pages-1 and takes them back. No page has two owners, none is lost.

    Page tables are the owners' own lists, grown in place: the batch hands the same list to the attention context.
    """

    __slots__ = ("_free", "n_pages", "page_size")

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages = n_pages
        self.page_size = page_size
        self._free: list[int] = []  # a stack: the page freed last, still warm, is used first
        self.reset()

    @property
    def n_free(self) -> int:
        return len(self._free)

    def pages_for(self, n_tokens: int) -> int:
        """Pages that hold ``n_tokens`` tokens."""
        return -(-n_tokens // self.page_size)

    def grow(self, table: list[int], n_tokens: int) -> bool:
        """Extend ``table`` until it holds ``n_tokens`` tokens. False, and nothing changed, where pages run short."""
        missing = self.pages_for(n_tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            table.append(self._free.pop())
        return True

    def release(self, table: list[int]) -> None:
        """Take back every page of ``table`` and empty it."""
        self._free.extend(reversed(table))
        table.clear()

    def check_fits(self, n_tokens: int) -> None:
        """Raise CapacityError where a sequence of ``n_tokens`` would not fit even with the whole cache to itself."""
        if n_tokens > self.n_pages * self.page_size:
            raise CapacityError(
                f"the request may grow to {n_tokens} tokens, but the cache holds {self.n_pages * self.page_size} "
                f"({self.n_pages} pages of {self.page_size}): lower max_tokens, or give the engine more n_pages"
            )

    def reset(self) -> None:
        """Every page is free again, whoever held it: the books after an interrupt cut a ``grow`` in half."""
        self._free = list(range(self.n_pages - 1, -1, -1))
