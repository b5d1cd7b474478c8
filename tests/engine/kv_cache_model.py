"""The paged cache once more, with plain lists and nothing clever: the judge of test_kv_cache_properties.py.

An entry of a table stands for a page: None left of the window, a Prefix for a full page (its content follows from the
tokens up to its end), a Private for a page that is still being filled. Equal entries are one page. Counts are never
kept, always counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Prefix = tuple[bytes, tuple[int, ...]]  # salt, and all tokens up to the end of a full page


@dataclass(frozen=True)
class Private:
    """A page that is not full; the number only tells it from others."""

    number: int


Entry = Prefix | Private | None


@dataclass
class ModelSequence:
    salt: bytes
    tokens: list[int]  # committed
    table: list[Entry]
    n_reserved: int = 0

    def prefix(self, n_tokens: int) -> Prefix:
        return self.salt, tuple(self.tokens[:n_tokens])


@dataclass
class KvCacheModel:
    n_pages: int
    page_size: int
    window: int
    sequences: dict[int, ModelSequence] = field(default_factory=dict)
    lru: list[Prefix] = field(default_factory=list)  # cached and not pinned, the oldest first
    pins: list[Prefix] = field(default_factory=list)  # a prefix pinned twice stands here twice
    indexed: list[Prefix] = field(default_factory=list)  # full pages that are there, held or cached
    n_numbers: int = 0
    n_evictions: int = 0
    n_copies: int = 0
    n_query_tokens: int = 0
    n_hit_tokens: int = 0

    # ---- counting

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    def n_dead(self, length: int) -> int:
        if self.window == 0:
            return 0
        first_visible = max(0, length - self.window + 1)
        return first_visible // self.page_size

    def n_holders(self, entry: Entry) -> int:
        return sum(entry in sequence.table for sequence in self.sequences.values())

    def held(self) -> set[Entry]:
        return {entry for sequence in self.sequences.values() for entry in sequence.table if entry is not None}

    def n_free(self) -> int:
        return self.n_pages - len(self.held() | set(self.indexed))

    def live_pages(self, prefix: Prefix) -> list[Prefix]:
        """The pages that a sequence going on from `prefix` needs, the first one first."""
        salt, tokens = prefix
        first = self.n_dead(len(tokens))
        n_pages = len(tokens) // self.page_size
        return [(salt, tokens[: (page + 1) * self.page_size]) for page in range(first, n_pages)]

    def is_pinned(self, page: Prefix) -> bool:
        return any(page in self.live_pages(pin) for pin in self.pins)

    def longest_known(self, salt: bytes, tokens: list[int], max_pages: int) -> Prefix:
        for n_pages in range(max_pages, 0, -1):
            prefix = (salt, tuple(tokens[: n_pages * self.page_size]))
            if all(page in self.indexed for page in self.live_pages(prefix)):
                return prefix
        return salt, ()

    # ---- moves

    def hold(self, entry: Entry) -> None:
        if entry in self.lru:
            self.lru.remove(entry)

    def let_go(self, table: list[Entry], index: int) -> None:
        entry, table[index] = table[index], None
        if isinstance(entry, tuple) and self.n_holders(entry) == 0 and not self.is_pinned(entry):
            self.lru.append(entry)

    def take(self) -> Private:
        if self.n_free() == 0:
            self.indexed.remove(self.lru.pop(0))
            self.n_evictions += 1
        self.n_numbers += 1
        return Private(self.n_numbers)

    # ---- verbs

    def admit(self, seq_id: int, tokens: list[int], salt: bytes) -> int:
        prefix = self.longest_known(salt, tokens, max(0, len(tokens) - 1) // self.page_size)
        n_cached = len(prefix[1])
        live = self.live_pages(prefix)
        for page in live:
            self.hold(page)
        dead: list[Entry] = [None] * (n_cached // self.page_size - len(live))
        self.sequences[seq_id] = ModelSequence(salt, list(prefix[1]), dead + live)
        self.n_query_tokens += len(tokens)
        self.n_hit_tokens += n_cached
        return n_cached

    def shares_a_partial_page(self, sequence: ModelSequence) -> bool:
        is_partial = len(sequence.tokens) % self.page_size != 0
        return is_partial and self.n_holders(sequence.table[len(sequence.tokens) // self.page_size]) > 1

    def n_wanted(self, seq_ids: list[int], counts: list[int]) -> int:
        n_wanted = 0
        writers: list[Entry] = []
        for seq_id, count in zip(seq_ids, counts, strict=True):
            sequence = self.sequences[seq_id]
            n_wanted += max(0, self.pages_for(len(sequence.tokens) + count) - len(sequence.table))
            if count > 0 and self.shares_a_partial_page(sequence):
                writers.append(sequence.table[len(sequence.tokens) // self.page_size])
        for entry in set(writers):
            n_wanted += min(writers.count(entry), self.n_holders(entry) - 1)
        return n_wanted

    def reserve(self, seq_ids: list[int], counts: list[int]) -> bool:
        if self.n_wanted(seq_ids, counts) > self.n_free() + len(self.lru):
            return False
        for seq_id, count in zip(seq_ids, counts, strict=True):
            sequence = self.sequences[seq_id]
            if count > 0 and self.shares_a_partial_page(sequence):
                sequence.table[len(sequence.tokens) // self.page_size] = self.take()
                self.n_copies += 1
            self.trim(sequence, len(sequence.tokens) + count)
            while len(sequence.table) < self.pages_for(len(sequence.tokens) + count):
                sequence.table.append(self.take())
            sequence.n_reserved = count
        return True

    def trim(self, sequence: ModelSequence, n_tokens: int) -> None:
        del sequence.table[self.pages_for(n_tokens) :]

    def commit(self, seq_id: int, tokens: list[int]) -> None:
        sequence = self.sequences[seq_id]
        n_full = len(sequence.tokens) // self.page_size
        sequence.tokens += tokens
        for page in range(n_full, len(sequence.tokens) // self.page_size):
            prefix = sequence.prefix((page + 1) * self.page_size)
            if prefix not in self.indexed:
                self.indexed.append(prefix)
            self.hold(prefix)
            sequence.table[page] = prefix
        self.trim(sequence, len(sequence.tokens))
        for page in reversed(range(self.n_dead(len(sequence.tokens)))):
            if sequence.table[page] is not None:
                self.let_go(sequence.table, page)
        sequence.n_reserved = 0

    def fork(self, seq_id: int, child_id: int) -> None:
        parent = self.sequences[seq_id]
        self.sequences[child_id] = ModelSequence(parent.salt, list(parent.tokens), list(parent.table))

    def release(self, seq_id: int) -> None:
        table = self.sequences[seq_id].table
        for page in reversed(range(len(table))):
            self.let_go(table, page)
        del self.sequences[seq_id]

    def pin(self, tokens: list[int], salt: bytes) -> int:
        prefix = self.longest_known(salt, tokens, len(tokens) // self.page_size)
        if prefix[1]:
            self.pins.append(prefix)
            self.lru = [page for page in self.lru if not self.is_pinned(page)]
        return len(prefix[1])

    def unpin(self, tokens: list[int], salt: bytes) -> int:
        pinned = [pin for pin in self.pins if pin[0] == salt and pin[1] == tuple(tokens[: len(pin[1])])]
        if not pinned:
            return 0
        pin = max(pinned, key=lambda prefix: len(prefix[1]))
        self.pins.remove(pin)
        for page in reversed(self.live_pages(pin)):
            if not self.is_pinned(page) and self.n_holders(page) == 0:
                self.lru.append(page)
        return len(pin[1])

    def clear_prefix_index(self) -> None:
        self.indexed = [page for page in self.indexed if page not in self.lru]
        self.lru = []

    def stats(self) -> dict[str, int]:
        n_held = len(self.held())
        return {
            "n_pages": self.n_pages,
            "n_free": self.n_free(),
            "n_held": n_held,
            "n_cached": self.n_pages - self.n_free() - n_held,
            "n_pinned": sum(self.is_pinned(page) for page in self.indexed),
            "n_sequences": len(self.sequences),
            "n_query_tokens": self.n_query_tokens,
            "n_hit_tokens": self.n_hit_tokens,
            "n_evictions": self.n_evictions,
            "n_copies": self.n_copies,
            "pool_bytes": 0,
        }
