// The parts of a cache and the few moves that every verb is made of. kv_cache.cpp has the verbs, page_group.cpp what
// becomes of pages, integrity.cpp the proof.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>
#include <vector>

#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"
#include "page_group.h"
#include "prefix_index.h"
#include "sequence_table.h"

namespace llm_decoder {

struct KvCache::Impl {
  struct Match {
    std::int32_t node;  // in the index, at depth n_pages; PrefixIndex::kNone when even the salt is unknown
    std::int32_t n_pages;
  };

  struct LayerPlace {
    std::int32_t group, index;  // `index`: which layer of its group
  };

  Impl(const KvCacheConfig& config, std::unique_ptr<PageStorage> storage);

  // The longest chain of at most max_pages full pages from which a sequence could go on; without the tier, with what is
  // in the pool alone.
  Match longest_match(Span<const std::int32_t> tokens, std::string_view salt, std::int32_t max_pages,
                      bool with_tier = true) const;

  // Reserve and commit. resolve fills `batch`, or throws having changed nothing.
  void resolve(Span<const std::int64_t> seq_ids, Span<const std::int32_t> counts, const char* place);
  void append(Sequence& sequence, const std::int32_t* tokens, std::int32_t count);
  void index_full_page(Sequence& sequence);  // the page that ends at its length, in every group

  KvCacheConfig config;
  std::unique_ptr<PageStorage> storage;
  PrefixIndex index;
  std::deque<PageGroup> groups;  // they stay where they are made
  std::vector<LayerPlace> layer_places;
  SequenceTable sequences;

  std::int64_t n_query_tokens = 0, n_hit_tokens = 0;

  // Scratch of reserve and commit, kept so that a step allocates nothing.
  std::uint64_t batch_number = 0;
  std::vector<Sequence*> batch;
};

}  // namespace llm_decoder
