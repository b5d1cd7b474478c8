// A cache whose pages hold texts in place of keys and values, and a decoder that writes them: each position gets a mark
// that follows from the salt and all tokens up to it, as its KV would. What a sequence's pages hold can so be read back
// and compared with what was written for its tokens, wherever it has been in the meantime.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "llm_decoder/kv_cache.h"
#include "llm_decoder/page_storage.h"

namespace llm_decoder {

using Ids = std::vector<std::int64_t>;
using Ints = std::vector<std::int32_t>;

class TextPages final : public PageStorage {
 public:
  explicit TextPages(const KvCacheConfig& config) {
    for (const KvGroupConfig& group : config.groups) {
      pages_.emplace_back(static_cast<std::size_t>(group.n_pages), "never written");
      slots_.emplace_back(static_cast<std::size_t>(group.n_tier_slots), "never written");
    }
  }

  std::int64_t page_bytes(std::int32_t) const override { return 1000; }
  void copy_page(std::int32_t group, std::int32_t from, std::int32_t to) override {
    page(group, to) = page(group, from);
  }
  void store(std::int32_t group, std::int32_t from, std::int32_t slot) override {
    at(slots_, group, slot) = page(group, from);
  }
  void load(std::int32_t group, std::int32_t slot, std::int32_t to) override {
    page(group, to) = at(slots_, group, slot);
  }

  std::string& page(std::int32_t group, std::int32_t id) { return at(pages_, group, id); }

 private:
  using Texts = std::vector<std::vector<std::string>>;  // [n_groups][n]
  static std::string& at(Texts& texts, std::int32_t group, std::int32_t id) {
    return texts[static_cast<std::size_t>(group)][static_cast<std::size_t>(id)];
  }

  Texts pages_, slots_;
};

inline TextPages& texts_of(KvCache& cache) { return dynamic_cast<TextPages&>(cache.storage()); }

// Sequences of a cache with TextPages on their walk.
class TextDecoder {
 public:
  explicit TextDecoder(const KvCacheConfig& config)
      : cache(config, std::make_unique<TextPages>(config)),
        n_groups_(static_cast<std::int32_t>(config.groups.size())) {}

  // A new sequence that will hold `tokens`, and holds those of them that were found.
  std::int64_t admit(const Ints& tokens, const std::string& salt = "", bool with_tier = true) {
    const KvCache::Admission admission = cache.admit(tokens, salt, with_tier);
    Text& text = texts_.emplace(admission.seq_id, Text(salt)).first->second;
    for (std::int32_t i = 0; i < admission.n_cached; ++i) text.add(tokens[static_cast<std::size_t>(i)]);
    check();
    return admission.seq_id;
  }

  // Computes tokens[i] of each sequence in one step; false, with nothing changed, when pages run short.
  bool step(const Ids& ids, const std::vector<Ints>& tokens) {
    Ints counts, all;
    for (const Ints& part : tokens) {
      counts.push_back(static_cast<std::int32_t>(part.size()));
      all.insert(all.end(), part.begin(), part.end());
    }
    if (!cache.reserve(ids, counts)) {
      check();
      return false;
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      CHECK_EQ(cache.n_tier_tokens(ids[i]), 0);
      for (const std::int32_t token : tokens[i]) {
        texts_.at(ids[i]).add(token);
        for (std::int32_t group = 0; group < n_groups_; ++group) write_last(ids[i], group);
      }
    }
    cache.commit(ids, counts, all);
    check();
    return true;
  }

  // A new sequence that holds all of `tokens`.
  std::int64_t run(const Ints& tokens, const std::string& salt = "") {
    const std::int64_t id = admit(tokens, salt);
    CHECK(finish(id, tokens));
    return id;
  }
  // Computes what an admitted sequence lacks of `tokens`.
  bool finish(std::int64_t id, const Ints& tokens) {
    return step({id}, {Ints(tokens.begin() + cache.length(id), tokens.end())});
  }

  std::int64_t fork(std::int64_t id) {
    const std::int64_t child = cache.fork(id);
    texts_.emplace(child, texts_.at(id));
    check();
    return child;
  }

  void release(std::int64_t id) {
    cache.release(id);
    texts_.erase(id);
    check();
  }

  Ids ids() const {
    Ids living;
    for (const auto& [id, text] : texts_) living.push_back(id);
    return living;
  }

  // The cache is in one piece, and each sequence's pages hold what was written for its tokens.
  void check() {
    cache.check_integrity();
    for (const auto& [id, text] : texts_) {
      CHECK_EQ(cache.length(id), static_cast<std::int32_t>(text.marks.size()));
      for (std::int32_t group = 0; group < n_groups_; ++group) check_pages(id, group, text.marks);
    }
  }

  KvCache cache;

 private:
  struct Text {
    explicit Text(const std::string& salt) {
      for (const char byte : salt) mix(static_cast<unsigned char>(byte));
    }
    void add(std::int32_t token) {
      mix(static_cast<std::uint64_t>(token) + 1);
      char mark[20];
      (void)std::snprintf(mark, sizeof mark, "%016llx ", static_cast<unsigned long long>(hash));
      marks.emplace_back(mark);
    }
    void mix(std::uint64_t value) { hash = (hash ^ value) * 1099511628211u; }  // FNV-1a

    std::uint64_t hash = 14695981039346656037u;
    std::vector<std::string> marks;  // [n_tokens]
  };

  void write_last(std::int64_t id, std::int32_t group) {
    const std::vector<std::string>& marks = texts_.at(id).marks;
    const std::size_t page_size = static_cast<std::size_t>(cache.config().page_size);
    const std::size_t position = marks.size() - 1;
    std::string& page = texts_of(cache).page(group, cache.page_table(id, group)[position / page_size]);
    page.resize(position % page_size * marks[position].size(), '?');
    page += marks[position];
  }

  void check_pages(std::int64_t id, std::int32_t group, const std::vector<std::string>& marks) {
    const Ints& table = cache.page_table(id, group);
    const std::size_t page_size = static_cast<std::size_t>(cache.config().page_size);
    for (std::size_t position = 0; position < marks.size(); ++position) {
      const std::int32_t page = table[position / page_size];
      if (page < 0) continue;
      const std::string& text = texts_of(cache).page(group, page);
      const std::size_t n = marks[position].size();
      const std::size_t begin = position % page_size * n;
      if (text.size() >= begin + n && text.compare(begin, n, marks[position]) == 0) continue;
      check::fail(__FILE__, __LINE__, "sequence ", id, " reads at position ", position, " in page ", page, " of group ",
                  group, " what was not written for it");
    }
  }

  std::int32_t n_groups_;
  std::map<std::int64_t, Text> texts_;
};

}  // namespace llm_decoder
