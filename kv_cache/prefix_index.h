// Full pages found again by what they hold: a tree of pages, each keyed by its parent and its tokens, under one root
// per salt. A chained 64-bit hash of (parent, tokens) finds the candidates; parent and tokens are then compared, so a
// collision costs time and never a wrong page.
//
// A node has a page in each group, or has lost it there. Groups are those of layers, and once more those of the slots
// of their second tiers, which are pages like others here. A node lives while it has a page, a child, an anchor or a
// pin. A node without a page keeps the chain to its children whole: a group with a window drops the pages on the left
// and can still tell what comes after them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace llm_decoder {

class PrefixIndex {
 public:
  static constexpr std::int32_t kNone = -1;

  PrefixIndex(std::int32_t page_size, std::uint64_t hash_mask);
  std::int32_t add_group(std::int32_t n_pages);  // its number; before the first node

  std::int32_t make_root(std::string_view salt);        // the root of this salt, new if need be; anchor it to keep it
  std::int32_t find_root(std::string_view salt) const;  // or kNone
  std::int32_t find_child(std::int32_t parent, const std::int32_t* tokens) const;  // tokens: [page_size]; or kNone
  std::int32_t add_child(std::int32_t parent, const std::int32_t* tokens);  // without a page: give it one or anchor it
  void set_page(std::int32_t node, std::int32_t group, std::int32_t page);  // of a node that has none in this group
  void forget_page(std::int32_t group, std::int32_t page);  // its node is without a page there now, or gone

  void anchor(std::int32_t node) { ++at(node).n_anchors; }
  void unanchor(std::int32_t node);
  void pin(std::int32_t node) { ++at(node).n_pins; }
  void unpin(std::int32_t node);

  std::int32_t parent(std::int32_t node) const { return at(node).parent; }
  std::int32_t depth(std::int32_t node) const { return at(node).depth; }  // in pages; 0: a root
  std::int32_t page(std::int32_t node, std::int32_t group) const {        // or kNone
    return pages_[static_cast<std::size_t>(node) * nodes_of_pages_.size() + static_cast<std::size_t>(group)];
  }
  std::int32_t n_anchors(std::int32_t node) const { return at(node).n_anchors; }
  std::int32_t n_pins(std::int32_t node) const { return at(node).n_pins; }
  std::int32_t node_of(std::int32_t group, std::int32_t page) const {
    return nodes_of_pages_[static_cast<std::size_t>(group)][static_cast<std::size_t>(page)];
  }
  std::int32_t n_groups() const { return static_cast<std::int32_t>(nodes_of_pages_.size()); }
  std::vector<std::int32_t> nodes() const;               // all that live
  std::size_t n_slots() const { return nodes_.size(); }  // node ids are below this

  void check_integrity() const;

 private:
  struct Node {
    std::uint64_t hash = 0;
    std::int32_t parent = kNone;
    std::int32_t depth = kNone;  // kNone: the slot is unused
    std::int32_t next_in_bucket = kNone;
    std::int32_t n_pages = 0;  // groups in which it has one
    std::int32_t n_children = 0;
    std::int32_t n_anchors = 0;
    std::int32_t n_pins = 0;
    const std::string* salt = nullptr;  // of a root, the key in roots_
  };

  Node& at(std::int32_t node) { return nodes_[static_cast<std::size_t>(node)]; }
  const Node& at(std::int32_t node) const { return nodes_[static_cast<std::size_t>(node)]; }
  std::int32_t* tokens_of(std::int32_t node) { return tokens_.data() + static_cast<std::size_t>(node) * page_size_; }
  const std::int32_t* tokens_of(std::int32_t node) const {
    return tokens_.data() + static_cast<std::size_t>(node) * page_size_;
  }
  std::int32_t& page_at(std::int32_t node, std::int32_t group) {
    return pages_[static_cast<std::size_t>(node) * nodes_of_pages_.size() + static_cast<std::size_t>(group)];
  }
  std::int32_t& node_at(std::int32_t group, std::int32_t page) {
    return nodes_of_pages_[static_cast<std::size_t>(group)][static_cast<std::size_t>(page)];
  }
  std::size_t bucket_of(std::uint64_t hash) const { return static_cast<std::size_t>(hash) & (buckets_.size() - 1); }
  std::uint64_t hash_of(std::int32_t parent, const std::int32_t* tokens) const;

  std::int32_t new_node();
  void link(std::int32_t node);
  void unlink(std::int32_t node);
  void grow_buckets();
  void remove_dead(std::int32_t node);  // this node and its ancestors, as far as nothing keeps them alive
  void check_node(std::int32_t node) const;

  std::size_t page_size_;
  std::uint64_t hash_mask_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> tokens_;   // [nodes_.size()][page_size]
  std::vector<std::int32_t> pages_;    // [nodes_.size()][n_groups]
  std::vector<std::int32_t> unused_;   // slots of nodes_
  std::vector<std::int32_t> buckets_;  // heads of the lists through next_in_bucket; a power of two of them
  std::vector<std::vector<std::int32_t>> nodes_of_pages_;  // [n_groups][n_pages]
  std::map<std::string, std::int32_t, std::less<>> roots_;
};

}  // namespace llm_decoder
