#include "swap_blocks.h"

#include <algorithm>

#include "device_memory.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "swap_blocks";

void check_page(std::int64_t page, std::int64_t n_pages, const char* which) {
  check_arg(page >= 0 && page < n_pages, kPlace, which, " pages must be 0 to ", n_pages - 1, ", got ", page);
}

}  // namespace

std::vector<PageRun> join_pages(Span<const std::int64_t> pairs) {
  std::vector<PageRun> pages;
  pages.reserve(pairs.size / 2);
  for (std::size_t i = 0; i + 1 < pairs.size; i += 2) pages.push_back({pairs[i], pairs[i + 1], 1});
  // Runs side by side are of one difference between source and destination.
  std::sort(pages.begin(), pages.end(), [](const PageRun& a, const PageRun& b) {
    const std::int64_t shift_a = a.to - a.from, shift_b = b.to - b.from;
    return shift_a != shift_b ? shift_a < shift_b : a.from < b.from;
  });
  std::vector<PageRun> runs;
  for (const PageRun& page : pages) {
    PageRun* const last = runs.empty() ? nullptr : &runs.back();
    if (last != nullptr && last->from + last->n == page.from && last->to + last->n == page.to) {
      ++last->n;
    } else {
      runs.push_back(page);
    }
  }
  std::sort(runs.begin(), runs.end(), [](const PageRun& a, const PageRun& b) { return a.from < b.from; });
  return runs;
}

void swap_blocks(const SwapBlocksArgs& args, Stream stream) {
  check_arg(args.page_bytes > 0, kPlace, "page_bytes must be positive, got ", args.page_bytes);
  check_arg(args.pairs.size % 2 == 0, kPlace, "pairs must be [n, 2], got ", args.pairs.size, " numbers");
  for (std::size_t i = 0; i < args.pairs.size; i += 2) {
    check_page(args.pairs[i], args.n_from_pages, "source");
    check_page(args.pairs[i + 1], args.n_to_pages, "destination");
  }
  for (const PageRun& run : join_pages(args.pairs)) {
    copy_memory(static_cast<std::byte*>(args.to) + run.to * args.page_bytes,
                static_cast<const std::byte*>(args.from) + run.from * args.page_bytes, run.n * args.page_bytes, stream);
  }
}

}  // namespace gpu
}  // namespace llm_decoder
