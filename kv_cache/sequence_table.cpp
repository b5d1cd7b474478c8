#include "sequence_table.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {

Sequence& SequenceTable::create(std::int64_t* seq_id) {
  *seq_id = next_id_;
  Sequence& sequence = sequences_[next_id_];
  ++next_id_;
  return sequence;
}

void SequenceTable::erase(std::int64_t seq_id) { sequences_.erase(seq_id); }

const Sequence& SequenceTable::find(std::int64_t seq_id, const char* place) const {
  const auto found = sequences_.find(seq_id);
  check_arg(found != sequences_.end(), place, "seq_id must name a living sequence, got ", seq_id,
            seq_id >= 0 && seq_id < next_id_ ? ", which was released" : ", which never was one");
  return found->second;
}

Sequence& SequenceTable::find(std::int64_t seq_id, const char* place) {
  return const_cast<Sequence&>(static_cast<const SequenceTable*>(this)->find(seq_id, place));
}

}  // namespace llm_decoder
