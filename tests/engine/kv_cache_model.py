"""The paged cache once more, with plain lists and nothing clever: the judge of test_kv_cache_properties.py.

An entry of a table stands for a page: None left of the window, a Prefix for a full page (its content follows from the
tokens up to its end), a Private for a page that is still being filled. Equal entries of one group are one page. Counts
are never kept, always counted.

A full page that gives way may go to the second tier (`tier`). A sequence admitted on it waits for it until it is next
reserved for; its table has the entry all the while.
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
    n_reserved: int = 0

    def prefix(self, n_tokens: int) -> Prefix:
        return self.salt, tuple(self.tokens[:n_tokens])


@dataclass
class GroupModel:
    """The pages of the layers with one window."""

    n_pages: int
    page_size: int
    window: int
    n_slots: int = 0
    tables: dict[int, list[Entry]] = field(default_factory=dict)
    waiting: dict[int, set[int]] = field(default_factory=dict)  # of a table, the entries that it has no page for yet
    lru: list[Prefix] = field(default_factory=list)  # cached and not pinned, the oldest first
    indexed: list[Prefix] = field(default_factory=list)  # full pages that are there, held or cached
    tier: list[Prefix] = field(default_factory=list)  # full pages in slots
    tier_lru: list[Prefix] = field(default_factory=list)  # of these, what nobody waits for and nobody pinned
    n_numbers: int = 0
    n_evictions: int = 0
    n_cleared: int = 0
    n_copies: int = 0
    n_stored: int = 0
    n_loaded: int = 0

    # ---- counting

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    def n_dead(self, length: int) -> int:
        if self.window == 0:
            return 0
        first_visible = max(0, length - self.window + 1)
        return first_visible // self.page_size

    def n_holders(self, entry: Entry) -> int:
        return sum(entry in table for table in self.tables.values())

    def held(self) -> set[Entry]:
        """In pages."""
        return {entry for table in self.tables.values() for entry in table if entry is not None} - set(self.tier)

    def n_free(self) -> int:
        return self.n_pages - len(self.held() | set(self.indexed))

    def live_pages(self, prefix: Prefix) -> list[Prefix]:
        """The pages that a sequence going on from `prefix` needs, the first one first."""
        salt, tokens = prefix
        first = self.n_dead(len(tokens))
        n_pages = len(tokens) // self.page_size
        return [(salt, tokens[: (page + 1) * self.page_size]) for page in range(first, n_pages)]

    def knows(self, prefix: Prefix, with_tier: bool) -> bool:
        return all(page in self.indexed or (with_tier and page in self.tier) for page in self.live_pages(prefix))

    def in_tier(self, seq_id: int) -> set[int]:
        """Entries of its table that are in slots."""
        table = self.tables[seq_id]
        return {index for index in self.waiting[seq_id] if table[index] in self.tier}

    def shares_a_partial_page(self, seq_id: int, length: int) -> bool:
        return length % self.page_size != 0 and self.n_holders(self.tables[seq_id][length // self.page_size]) > 1

    def n_wanted(self, lengths: dict[int, int], counts: list[int]) -> int:
        n_wanted = len({self.tables[seq_id][index] for seq_id in lengths for index in self.in_tier(seq_id)})
        writers: list[Entry] = []
        for (seq_id, length), count in zip(lengths.items(), counts, strict=True):
            n_wanted += max(0, self.pages_for(length + count) - len(self.tables[seq_id]))
            if count > 0 and self.shares_a_partial_page(seq_id, length):
                writers.append(self.tables[seq_id][length // self.page_size])
        for entry in set(writers):
            n_wanted += min(writers.count(entry), self.n_holders(entry) - 1)
        return n_wanted

    # ---- moves

    def hold(self, entry: Entry) -> None:
        for lru in (self.lru, self.tier_lru):
            if entry in lru:
                lru.remove(entry)

    def rest(self, page: Prefix) -> None:
        """Nobody holds or has pinned it any more."""
        (self.tier_lru if page in self.tier else self.lru).append(page)

    def take(self) -> Private:
        if self.n_free() == 0:
            oldest = self.lru.pop(0)
            self.indexed.remove(oldest)
            self.n_evictions += 1
            self.store(oldest)
        self.n_numbers += 1
        return Private(self.n_numbers)

    def store(self, page: Prefix) -> None:
        if len(self.tier) == self.n_slots:
            if not self.tier_lru:
                return
            self.tier.remove(self.tier_lru.pop(0))
        self.tier.append(page)
        self.tier_lru.append(page)
        self.n_stored += 1

    def fetch(self, seq_id: int) -> None:
        for index in sorted(self.in_tier(seq_id), reverse=True):
            self.take()
            entry = self.tables[seq_id][index]
            assert isinstance(entry, tuple)
            self.tier.remove(entry)
            self.indexed.append(entry)
            self.n_loaded += 1
        self.waiting[seq_id] = set()

    def start(self, seq_id: int, prefix: Prefix) -> None:
        live = self.live_pages(prefix)
        for page in live:
            self.hold(page)
        dead: list[Entry] = [None] * (len(prefix[1]) // self.page_size - len(live))
        self.tables[seq_id] = dead + live
        self.waiting[seq_id] = {index for index, page in enumerate(dead + live) if page in self.tier}

    def make_room(self, seq_id: int, length: int, count: int) -> None:
        self.fetch(seq_id)
        table = self.tables[seq_id]
        if count > 0 and self.shares_a_partial_page(seq_id, length):
            table[length // self.page_size] = self.take()
            self.n_copies += 1
        self.trim(seq_id, length + count)
        while len(table) < self.pages_for(length + count):
            table.append(self.take())

    def trim(self, seq_id: int, n_tokens: int) -> None:
        del self.tables[seq_id][self.pages_for(n_tokens) :]

    def fill(self, seq_id: int, page: int, prefix: Prefix) -> None:
        if prefix not in self.indexed:
            self.indexed.append(prefix)
        self.hold(prefix)
        if prefix in self.tier:
            self.tier.remove(prefix)
        self.tables[seq_id][page] = prefix


@dataclass
class KvCacheModel:
    page_size: int
    groups: list[GroupModel]
    sequences: dict[int, ModelSequence] = field(default_factory=dict)
    pins: list[Prefix] = field(default_factory=list)  # a prefix pinned twice stands here twice
    n_query_tokens: int = 0
    n_hit_tokens: int = 0

    def is_pinned(self, group: GroupModel, page: Prefix) -> bool:
        return any(page in group.live_pages(pin) for pin in self.pins)

    def longest_known(self, salt: bytes, tokens: list[int], max_pages: int, with_tier: bool = True) -> Prefix:
        for n_pages in range(max_pages, 0, -1):
            prefix = (salt, tuple(tokens[: n_pages * self.page_size]))
            if all(group.knows(prefix, with_tier) for group in self.groups):
                return prefix
        return salt, ()

    def let_go(self, group: GroupModel, seq_id: int, index: int) -> None:
        table = group.tables[seq_id]
        entry, table[index] = table[index], None
        if isinstance(entry, tuple) and group.n_holders(entry) == 0 and not self.is_pinned(group, entry):
            group.rest(entry)

    # ---- verbs

    def admit(self, seq_id: int, tokens: list[int], salt: bytes, with_tier: bool) -> int:
        prefix = self.longest_known(salt, tokens, max(0, len(tokens) - 1) // self.page_size, with_tier)
        n_cached = len(prefix[1])
        for group in self.groups:
            group.start(seq_id, prefix)
        self.sequences[seq_id] = ModelSequence(salt, list(prefix[1]))
        self.n_query_tokens += len(tokens)
        self.n_hit_tokens += n_cached
        return n_cached

    def reserve(self, seq_ids: list[int], counts: list[int]) -> bool:
        lengths = {seq_id: len(self.sequences[seq_id].tokens) for seq_id in seq_ids}
        if any(group.n_wanted(lengths, counts) > group.n_free() + len(group.lru) for group in self.groups):
            return False
        for seq_id, count in zip(seq_ids, counts, strict=True):
            for group in self.groups:
                group.make_room(seq_id, lengths[seq_id], count)
            self.sequences[seq_id].n_reserved = count
        return True

    def commit(self, seq_id: int, tokens: list[int]) -> None:
        sequence = self.sequences[seq_id]
        n_full = len(sequence.tokens) // self.page_size
        sequence.tokens += tokens
        length = len(sequence.tokens)
        for group in self.groups:
            for page in range(n_full, length // self.page_size):
                group.fill(seq_id, page, sequence.prefix((page + 1) * self.page_size))
            group.trim(seq_id, length)
            for page in reversed(range(group.n_dead(length))):
                if group.tables[seq_id][page] is not None:
                    self.let_go(group, seq_id, page)
        sequence.n_reserved = 0

    def fork(self, seq_id: int, child_id: int) -> None:
        parent = self.sequences[seq_id]
        self.sequences[child_id] = ModelSequence(parent.salt, list(parent.tokens))
        for group in self.groups:
            group.tables[child_id] = list(group.tables[seq_id])
            group.waiting[child_id] = set(group.waiting[seq_id])

    def release(self, seq_id: int) -> None:
        for group in self.groups:
            for page in reversed(range(len(group.tables[seq_id]))):
                self.let_go(group, seq_id, page)
            del group.tables[seq_id], group.waiting[seq_id]
        del self.sequences[seq_id]

    def pin(self, tokens: list[int], salt: bytes) -> int:
        prefix = self.longest_known(salt, tokens, len(tokens) // self.page_size)
        if prefix[1]:
            self.pins.append(prefix)
            for group in self.groups:
                group.lru = [page for page in group.lru if not self.is_pinned(group, page)]
                group.tier_lru = [page for page in group.tier_lru if not self.is_pinned(group, page)]
        return len(prefix[1])

    def unpin(self, tokens: list[int], salt: bytes) -> int:
        pinned = [pin for pin in self.pins if pin[0] == salt and pin[1] == tuple(tokens[: len(pin[1])])]
        if not pinned:
            return 0
        pin = max(pinned, key=lambda prefix: len(prefix[1]))
        self.pins.remove(pin)
        for group in self.groups:
            for page in reversed(group.live_pages(pin)):
                if not self.is_pinned(group, page) and group.n_holders(page) == 0:
                    group.rest(page)
        return len(pin[1])

    def clear_prefix_index(self) -> None:
        for group in self.groups:
            group.indexed = [page for page in group.indexed if page not in group.lru]
            group.tier = [page for page in group.tier if page not in group.tier_lru]
            group.n_cleared += len(group.lru) + len(group.tier_lru)
            group.lru, group.tier_lru = [], []

    def n_tier_tokens(self, seq_id: int) -> int:
        return len({index for group in self.groups for index in group.in_tier(seq_id)}) * self.page_size

    def stats(self) -> dict[str, int]:
        n_pages = sum(group.n_pages for group in self.groups)
        n_free = sum(group.n_free() for group in self.groups)
        n_held = sum(len(group.held()) for group in self.groups)
        return {
            "n_pages": n_pages,
            "n_free": n_free,
            "n_held": n_held,
            "n_cached": n_pages - n_free - n_held,
            "n_pinned": sum(self.is_pinned(group, page) for group in self.groups for page in group.indexed),
            "n_evictable": sum(len(group.lru) for group in self.groups),
            "n_sequences": len(self.sequences),
            "n_query_tokens": self.n_query_tokens,
            "n_hit_tokens": self.n_hit_tokens,
            "n_evictions": sum(group.n_evictions for group in self.groups),
            "n_cleared": sum(group.n_cleared for group in self.groups),
            "n_copies": sum(group.n_copies for group in self.groups),
            "n_tier_slots": sum(group.n_slots for group in self.groups),
            "n_tier_used": sum(len(group.tier) for group in self.groups),
            "n_stored": sum(group.n_stored for group in self.groups),
            "n_loaded": sum(group.n_loaded for group in self.groups),
            "pool_bytes": 0,
        }
