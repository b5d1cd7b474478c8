#include "page_table.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {

PageTable& SequenceTable::create(std::int64_t* seq_id) {
  *seq_id = next_id_;
  PageTable& table = tables_[next_id_];
  ++next_id_;
  return table;
}

void SequenceTable::erase(std::int64_t seq_id) { tables_.erase(seq_id); }

const PageTable& SequenceTable::find(std::int64_t seq_id, const char* place) const {
  const auto found = tables_.find(seq_id);
  check_arg(found != tables_.end(), place, "seq_id must name a living sequence, got ", seq_id,
            seq_id >= 0 && seq_id < next_id_ ? ", which was released" : ", which never was one");
  return found->second;
}

PageTable& SequenceTable::find(std::int64_t seq_id, const char* place) {
  return const_cast<PageTable&>(static_cast<const SequenceTable*>(this)->find(seq_id, place));
}

}  // namespace llm_decoder
