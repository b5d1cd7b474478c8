#include "moe_sort_launch.h"

#include "llm_decoder/errors.h"
#include "moe_sort.h"

namespace llm_decoder {
namespace gpu {

void moe_sort(const MoeSortArgs& args, Stream stream) {
  constexpr char kPlace[] = "moe_sort";
  const MoePairs& pairs = args.pairs;
  check_arg(pairs.n_experts >= 1 && pairs.n_experts <= kMaxLocalExperts, kPlace, "n_experts must be 1 to ",
            kMaxLocalExperts, ", got ", pairs.n_experts);
  check_arg(pairs.n_pairs >= 0, kPlace, "n_pairs must not be negative, got ", pairs.n_pairs);
  check_arg(args.tile_rows >= 1, kPlace, "tile_rows must be positive, got ", args.tile_rows);
  const int n_chunks = n_sort_chunks(pairs.n_pairs);
  const int shared_bytes = sort_shared_bytes(pairs.n_experts);
  if (n_chunks == 1) return launch<moe_sort_kernel>(stream, {{1, 1, 1}, kSortThreads, shared_bytes}, args);
  launch<moe_count_kernel>(stream, {{n_chunks, 1, 1}, kSortThreads, shared_bytes}, args);
  launch<moe_scan_kernel>(stream, {{1, 1, 1}, kSortThreads, shared_bytes}, args);
  launch<moe_place_kernel>(stream, {{n_chunks, 1, 1}, kSortThreads, shared_bytes}, args);
}

}  // namespace gpu
}  // namespace llm_decoder
