#include "prefix_index.h"

#include <algorithm>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

// One round of a multiply-xorshift mix (the finalizer of splitmix64, Steele et al. 2014).
std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

std::uint64_t hash_salt(std::string_view salt) {
  std::uint64_t hash = salt.size();
  for (const char byte : salt) hash = mix(hash, static_cast<unsigned char>(byte));
  return hash;
}

constexpr std::size_t kFirstBuckets = 64;

}  // namespace

PrefixIndex::PrefixIndex(std::int32_t page_size, std::uint64_t hash_mask)
    : page_size_(static_cast<std::size_t>(page_size)), hash_mask_(hash_mask), buckets_(kFirstBuckets, kNone) {}

std::int32_t PrefixIndex::add_group(std::int32_t n_pages) {
  check_state(nodes_.empty(), "PrefixIndex.add_group", "there are nodes already");
  nodes_of_pages_.emplace_back(static_cast<std::size_t>(n_pages), kNone);
  return static_cast<std::int32_t>(nodes_of_pages_.size()) - 1;
}

std::uint64_t PrefixIndex::hash_of(std::int32_t parent, const std::int32_t* tokens) const {
  std::uint64_t hash = at(parent).hash;
  for (std::size_t i = 0; i < page_size_; ++i) hash = mix(hash, static_cast<std::uint32_t>(tokens[i]));
  return hash & hash_mask_;
}

std::int32_t PrefixIndex::make_root(std::string_view salt) {
  const std::int32_t known = find_root(salt);
  if (known != kNone) return known;
  const std::int32_t root = new_node();
  at(root).depth = 0;
  at(root).hash = hash_salt(salt) & hash_mask_;
  at(root).salt = &roots_.emplace(salt, root).first->first;
  return root;
}

std::int32_t PrefixIndex::find_root(std::string_view salt) const {
  const auto found = roots_.find(salt);
  return found == roots_.end() ? kNone : found->second;
}

std::int32_t PrefixIndex::find_child(std::int32_t parent, const std::int32_t* tokens) const {
  const std::uint64_t hash = hash_of(parent, tokens);
  for (std::int32_t node = buckets_[bucket_of(hash)]; node != kNone; node = at(node).next_in_bucket) {
    if (at(node).hash == hash && at(node).parent == parent &&
        std::equal(tokens, tokens + page_size_, tokens_of(node))) {
      return node;
    }
  }
  return kNone;
}

std::int32_t PrefixIndex::add_child(std::int32_t parent, const std::int32_t* tokens) {
  const std::uint64_t hash = hash_of(parent, tokens);
  const std::int32_t node = new_node();
  std::copy_n(tokens, page_size_, tokens_of(node));
  at(node).hash = hash;
  at(node).parent = parent;
  at(node).depth = at(parent).depth + 1;
  ++at(parent).n_children;
  link(node);
  return node;
}

void PrefixIndex::set_page(std::int32_t node, std::int32_t group, std::int32_t page) {
  const char* place = "PrefixIndex.set_page";
  check_state(this->page(node, group) == kNone, place, "node ", node, " has page ", this->page(node, group));
  check_state(node_of(group, page) == kNone, place, "page ", page, " is of node ", node_of(group, page));
  page_at(node, group) = page;
  node_at(group, page) = node;
  ++at(node).n_pages;
}

void PrefixIndex::forget_page(std::int32_t group, std::int32_t page) {
  const std::int32_t node = node_of(group, page);
  check_state(node != kNone, "PrefixIndex.forget_page", "page ", page, " is not in the index");
  node_at(group, page) = kNone;
  page_at(node, group) = kNone;
  --at(node).n_pages;
  remove_dead(node);
}

void PrefixIndex::unanchor(std::int32_t node) {
  --at(node).n_anchors;
  remove_dead(node);
}

void PrefixIndex::unpin(std::int32_t node) {
  --at(node).n_pins;
  remove_dead(node);
}

void PrefixIndex::remove_dead(std::int32_t node) {
  while (node != kNone) {
    const Node& dead = at(node);
    if (dead.n_pages > 0 || dead.n_children > 0 || dead.n_anchors > 0 || dead.n_pins > 0) return;
    const std::int32_t parent = dead.parent;
    if (parent == kNone) {
      roots_.erase(roots_.find(*dead.salt));
    } else {
      unlink(node);
      --at(parent).n_children;
    }
    at(node) = Node{};
    unused_.push_back(node);
    node = parent;
  }
}

std::int32_t PrefixIndex::new_node() {
  if (unused_.empty()) {
    const auto node = static_cast<std::int32_t>(nodes_.size());
    tokens_.resize((nodes_.size() + 1) * page_size_);
    pages_.resize((nodes_.size() + 1) * nodes_of_pages_.size(), kNone);
    nodes_.emplace_back();
    unused_.reserve(nodes_.capacity());  // so that remove_dead never allocates
    if (nodes_.size() > buckets_.size()) grow_buckets();
    return node;
  }
  const std::int32_t node = unused_.back();
  unused_.pop_back();
  return node;
}

void PrefixIndex::link(std::int32_t node) {
  std::int32_t& head = buckets_[bucket_of(at(node).hash)];
  at(node).next_in_bucket = head;
  head = node;
}

void PrefixIndex::unlink(std::int32_t node) {
  std::int32_t* at_link = &buckets_[bucket_of(at(node).hash)];
  while (*at_link != node) at_link = &at(*at_link).next_in_bucket;
  *at_link = at(node).next_in_bucket;
}

void PrefixIndex::grow_buckets() {
  buckets_.assign(buckets_.size() * 2, kNone);
  for (const std::int32_t node : nodes()) {
    if (at(node).parent != kNone) link(node);
  }
}

std::vector<std::int32_t> PrefixIndex::nodes() const {
  std::vector<std::int32_t> alive;
  for (std::int32_t node = 0; node < static_cast<std::int32_t>(nodes_.size()); ++node) {
    if (at(node).depth != kNone) alive.push_back(node);
  }
  return alive;
}

void PrefixIndex::check_node(std::int32_t node) const {
  const char* place = "PrefixIndex.check_integrity";
  const Node& self = at(node);
  check_state(self.n_pages > 0 || self.n_children > 0 || self.n_anchors > 0 || self.n_pins > 0, place, "node ", node,
              " is kept alive by nothing");
  check_state(self.n_anchors >= 0 && self.n_pins >= 0, place, "node ", node, " has a negative count");
  std::int32_t n_pages = 0;
  for (std::int32_t group = 0; group < n_groups(); ++group) {
    const std::int32_t page = this->page(node, group);
    if (page == kNone) continue;
    ++n_pages;
    check_state(node_of(group, page) == node, place, "page ", page, " does not point to node ", node);
  }
  check_state(n_pages == self.n_pages, place, "node ", node, " counts ", self.n_pages, " pages, has ", n_pages);
  if (self.parent == kNone) {
    check_state(self.depth == 0 && n_pages == 0, place, "root ", node, " has a depth or a page");
    check_state(find_root(*self.salt) == node, place, "root ", node, " is not found by its salt");
    return;
  }
  // Depths grow by one from parent to child, so no chain of parents can be a cycle.
  check_state(at(self.parent).depth >= 0, place, "parent ", self.parent, " of node ", node, " does not exist");
  check_state(self.depth == at(self.parent).depth + 1, place, "node ", node, " is not one deeper than its parent");
  check_state(find_child(self.parent, tokens_of(node)) == node, place, "node ", node, " is not found by its tokens");
}

void PrefixIndex::check_integrity() const {
  const char* place = "PrefixIndex.check_integrity";
  const std::vector<std::int32_t> alive = nodes();
  check_state(alive.size() + unused_.size() == nodes_.size(), place, alive.size(), " living and ", unused_.size(),
              " unused nodes are not ", nodes_.size());
  std::vector<std::int32_t> n_children(nodes_.size(), 0);
  std::size_t n_roots = 0, n_pages = 0;
  for (const std::int32_t node : alive) {
    check_node(node);
    n_pages += static_cast<std::size_t>(at(node).n_pages);
    if (at(node).parent == kNone) {
      ++n_roots;
    } else {
      ++n_children[static_cast<std::size_t>(at(node).parent)];
    }
  }
  for (const std::int32_t node : alive) {
    check_state(at(node).n_children == n_children[static_cast<std::size_t>(node)], place, "node ", node, " counts ",
                at(node).n_children, " children, has ", n_children[static_cast<std::size_t>(node)]);
  }
  check_state(n_roots == roots_.size(), place, n_roots, " roots live, ", roots_.size(), " are known");
  std::size_t n_mapped = 0;
  for (const std::vector<std::int32_t>& nodes : nodes_of_pages_) {
    n_mapped += nodes.size() - static_cast<std::size_t>(std::count(nodes.begin(), nodes.end(), kNone));
  }
  check_state(n_mapped == n_pages, place, n_mapped, " pages point to nodes, nodes have ", n_pages, " pages");
}

}  // namespace llm_decoder
