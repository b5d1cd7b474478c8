// KvCache: the verbs of kv_cache.h on NumPy arrays, the same wherever pages lie. The GIL is kept: each verb takes
// microseconds, and it is what keeps two threads of a careless program out of one cache.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>

#include "array_view.h"
#include "kv_cache_binding.h"
#include "llm_decoder/kv_cache.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

Dtype parse_kv_dtype(const std::string& name) {
  if (name == "f32") return Dtype::f32;
  if (name == "bf16") return Dtype::bf16;
  if (name == "f16") return Dtype::f16;
  if (name == "fp8") return Dtype::fp8;
  check_arg(name == "s8", "KvCache", "dtype must be 'f32', 'bf16', 'f16', 'fp8' or 's8', got '", name, "'");
  return Dtype::s8;
}

// An int for one group, or a sequence with an int for each.
std::vector<std::int32_t> per_group(const py::object& value) {
  if (py::isinstance<py::int_>(value)) return {value.cast<std::int32_t>()};
  return value.cast<std::vector<std::int32_t>>();
}

// An int for all groups alike, or a sequence with an int for each.
std::vector<std::int32_t> for_each_group(const py::object& value, std::size_t n_groups) {
  if (!py::isinstance<py::int_>(value)) return value.cast<std::vector<std::int32_t>>();
  return std::vector<std::int32_t>(n_groups, value.cast<std::int32_t>());
}

py::tuple admit(KvCache& cache, const py::array& tokens, const py::bytes& salt, bool with_tier) {
  const KvCache::Admission admission =
      cache.admit(read_array<std::int32_t>(tokens, "KvCache.admit", "tokens"), std::string_view(salt), with_tier);
  return py::make_tuple(admission.seq_id, admission.n_cached);
}

bool reserve(KvCache& cache, const py::array& seq_ids, const py::array& counts) {
  const char* place = "KvCache.reserve";
  return cache.reserve(read_array<std::int64_t>(seq_ids, place, "seq_ids"),
                       read_array<std::int32_t>(counts, place, "counts"));
}

void commit(KvCache& cache, const py::array& seq_ids, const py::array& counts, const py::array& tokens) {
  const char* place = "KvCache.commit";
  cache.commit(read_array<std::int64_t>(seq_ids, place, "seq_ids"), read_array<std::int32_t>(counts, place, "counts"),
               read_array<std::int32_t>(tokens, place, "tokens"));
}

py::array_t<std::int32_t> page_table(const KvCache& cache, std::int64_t seq_id, std::int32_t group) {
  const std::vector<std::int32_t>& pages = cache.page_table(seq_id, group);
  return copy_to_array(pages.data(), {static_cast<py::ssize_t>(pages.size())});
}

std::int32_t pin(KvCache& cache, const py::array& tokens, const py::bytes& salt) {
  return cache.pin(read_array<std::int32_t>(tokens, "KvCache.pin", "tokens"), std::string_view(salt));
}

std::int32_t unpin(KvCache& cache, const py::array& tokens, const py::bytes& salt) {
  return cache.unpin(read_array<std::int32_t>(tokens, "KvCache.unpin", "tokens"), std::string_view(salt));
}

bool has_room(const KvCache& cache, const py::array& n_now, const py::array& n_then, std::int32_t max_step) {
  const char* place = "KvCache.has_room";
  return cache.has_room(read_array<std::int32_t>(n_now, place, "n_now"),
                        read_array<std::int32_t>(n_then, place, "n_then"), max_step);
}

py::list page_bytes(const KvCache& cache) {
  py::list bytes;
  for (const KvGroupStats& group : cache.stats().groups) bytes.append(group.page_bytes);
  return bytes;
}

py::dict stats(const KvCache& cache) {
  const KvCacheStats stats = cache.stats();
  py::dict named;
  named["n_pages"] = stats.n_pages;
  named["n_free"] = stats.n_free;
  named["n_held"] = stats.n_held;
  named["n_cached"] = stats.n_cached;
  named["n_pinned"] = stats.n_pinned;
  named["n_evictable"] = stats.n_evictable;
  named["n_sequences"] = stats.n_sequences;
  named["n_query_tokens"] = stats.n_query_tokens;
  named["n_hit_tokens"] = stats.n_hit_tokens;
  named["n_evictions"] = stats.n_evictions;
  named["n_cleared"] = stats.n_cleared;
  named["n_copies"] = stats.n_copies;
  named["n_tier_slots"] = stats.n_tier_slots;
  named["n_tier_used"] = stats.n_tier_used;
  named["n_stored"] = stats.n_stored;
  named["n_loaded"] = stats.n_loaded;
  named["pool_bytes"] = stats.pool_bytes;
  return named;
}

py::dict durations(const KvCache& cache) {
  const KvDurations durations = cache.durations();
  const auto pair = [](const DurationCounts& part) { return py::make_tuple(part.counts, part.sum); };
  py::dict named;
  named["bounds"] = DurationCounts::kBounds;
  named["lifetime"] = pair(durations.lifetimes);
  named["idle_before_eviction"] = pair(durations.idle_times);
  named["reuse_gap"] = pair(durations.reuse_gaps);
  return named;
}

// {field: array [n]}, a place a page.
template <class T, class Field>
py::array_t<T> column(const std::vector<KvPageState>& states, Field field) {
  py::array_t<T> values(static_cast<py::ssize_t>(states.size()));
  T* out = values.mutable_data();
  for (const KvPageState& state : states) *out++ = state.*field;
  return values;
}

py::dict pages(const KvCache& cache) {
  const std::vector<KvPageState> states = cache.pages();
  py::dict named;
  named["group"] = column<std::int32_t>(states, &KvPageState::group);
  named["page"] = column<std::int32_t>(states, &KvPageState::page);
  named["n_holders"] = column<std::int32_t>(states, &KvPageState::n_holders);
  named["n_pins"] = column<std::int32_t>(states, &KvPageState::n_pins);
  named["is_indexed"] = column<bool>(states, &KvPageState::is_indexed);
  named["taken_s"] = column<double>(states, &KvPageState::taken_s);
  named["idle_s"] = column<double>(states, &KvPageState::idle_s);
  return named;
}

}  // namespace

KvCacheConfig read_kv_cache_config(const py::object& n_pages, std::int32_t page_size, const py::object& layers,
                                   std::int32_t n_kv_heads, std::int32_t head_dim, const std::string& dtype,
                                   const py::object& window, const py::object& n_tier_slots, std::uint64_t hash_mask) {
  KvCacheConfig config;
  const std::vector<std::int32_t> pages_of = per_group(n_pages), window_of = per_group(window);
  check_arg(pages_of.size() == window_of.size(), "KvCache",
            "n_pages and window must have an entry for each group, got ", pages_of.size(), " and ", window_of.size());
  const std::vector<std::int32_t> slots_of = for_each_group(n_tier_slots, pages_of.size());
  check_arg(pages_of.size() == slots_of.size(), "KvCache",
            "n_pages and n_tier_slots must have an entry for each group, got ", pages_of.size(), " and ",
            slots_of.size());
  for (std::size_t i = 0; i < pages_of.size(); ++i) config.groups.push_back({pages_of[i], window_of[i], slots_of[i]});
  if (py::isinstance<py::int_>(layers)) {
    const auto n_layers = layers.cast<std::int32_t>();
    check_arg(0 <= n_layers && n_layers <= 4096, "KvCache", "n_layers must be in [0, 4096], got ", n_layers);
    config.layer_groups.assign(static_cast<std::size_t>(n_layers), 0);
  } else {
    config.layer_groups = layers.cast<std::vector<std::int32_t>>();
  }
  config.page_size = page_size;
  config.n_kv_heads = n_kv_heads;
  config.head_dim = head_dim;
  config.dtype = parse_kv_dtype(dtype);
  config.hash_mask = hash_mask;
  return config;
}

void add_kv_cache_verbs(py::class_<KvCache>& cls) {
  cls.def("admit", &admit, py::arg("tokens"), py::arg("salt") = py::bytes(), py::arg("with_tier") = true,
          "A new sequence that will hold tokens (int32 [n]). Takes hold of the longest prefix under the same salt "
          "that\n"
          "is cached or, with_tier, in the tier. Returns (seq_id, n_cached): n_cached is a multiple of page_size, at "
          "most n - 1.")
      .def("reserve", &reserve, py::arg("seq_ids"), py::arg("counts"),
           "Makes room for counts[i] (int32 [n]) more tokens of each sequence (seq_ids: int64 [n]), and loads what it\n"
           "has in the tier, for all or for none. Returns False, with nothing changed, when pages run short.\n"
           "ValueError for an unknown sequence.")
      .def("commit", &commit, py::arg("seq_ids"), py::arg("counts"), py::arg("tokens"),
           "The KV of counts[i] tokens of each sequence is written (tokens: int32 [sum(counts)], sequences in order): "
           "lengths grow,\nfull pages enter the prefix index, unused room is given back. ValueError past what was "
           "reserved.")
      .def("fork", &KvCache::fork, py::arg("seq_id"),
           "A second sequence on the same pages; a shared partial page is copied when one of them writes to it. "
           "Returns its id.\nValueError when tokens are reserved and not committed.")
      .def("release", &KvCache::release, py::arg("seq_id"),
           "Ends a sequence: full pages that nobody else holds stay cached, the others are free.")
      .def("length", &KvCache::length, py::arg("seq_id"), "Tokens committed.")
      .def("n_tier_tokens", &KvCache::n_tier_tokens, py::arg("seq_id"),
           "Of the tokens committed, those in pages that the next reserve of the sequence loads from the tier.")
      .def("page_table", &page_table, py::arg("seq_id"), py::arg("group") = 0,
           "int32 [n]: page ids in order of position, -1 left of the group's window and where the page is in the tier.")
      .def("pin", &pin, py::arg("tokens"), py::arg("salt") = py::bytes(),
           "Keeps the pages of the longest known prefix of tokens (int32 [n]) until unpinned. Counted.\n"
           "Returns how many tokens that prefix has.")
      .def("unpin", &unpin, py::arg("tokens"), py::arg("salt") = py::bytes(),
           "Takes back one pin of the longest pinned prefix of tokens. Returns how many tokens that prefix has.")
      .def("clear_prefix_index", &KvCache::clear_prefix_index, "Forgets every cached page that is not pinned.")
      .def("has_room", &has_room, py::arg("n_now"), py::arg("n_then"), py::arg("max_step"),
           "Whether free and evictable pages are enough for sequences that grow from n_now to n_then tokens (int32 "
           "[n])\nin steps of at most max_step. An estimate on the safe side.")
      .def("max_tokens", &KvCache::max_tokens, py::arg("max_step"),
           "The most tokens a sequence can have that has all pages to itself and takes steps of max_step tokens.")
      .def("page_bytes", &page_bytes, "list [n_groups]: bytes of one page over all layers of the group.")
      .def("stats", &stats,
           "Counts of pages of all groups by state (n_free + n_held + n_cached = n_pages; n_pinned; n_evictable of "
           "n_cached), of sequences, of looked-up and\nfound tokens, of pages evicted for others (n_evictions) and by "
           "clear_prefix_index (n_cleared), of copies, of the tier's slots (n_tier_slots, n_tier_used), of pages that "
           "went there (n_stored)\nand came back (n_loaded), and pool_bytes.")
      .def(
          "pages", &pages,
          "Of each page that is not free, arrays [n]: group, page (its id there), n_holders (page tables that have "
          "it), "
          "n_pins,\nis_indexed (found again by its tokens), and in seconds how long ago it was taken (taken_s) and its "
          "last holder let\nit go (idle_s, 0 while it has one).")
      .def("set_time", &KvCache::set_time, py::arg("now_s"),
           "What time it is for the verbs that follow, in seconds of a clock that never goes back.")
      .def("durations", &durations,
           "Of pages in the prefix index, in seconds: {'bounds': [...], and of 'lifetime' (taken to evicted), "
           "'idle_before_eviction' and\n'reuse_gap' (without a holder) a pair (counts, sum)}. counts[i] is of those "
           "in (bounds[i - 1], bounds[i]], the last of those above all.")
      .def(
          "load_times",
          [](const KvCache& cache) {
            const MoveTimes times = cache.load_times();
            return py::make_tuple(times.n_bytes, times.seconds);
          },
          "(bytes, seconds) of pages that came back from the tier, as far as that was measured; (0, 0.0) before.")
      .def("check_integrity", &KvCache::check_integrity, "Raises RuntimeError saying what is broken, if anything is.")
      .def_property_readonly("page_size", [](const KvCache& cache) { return cache.config().page_size; });
}

}  // namespace llm_decoder
