#include "study_launch.h"

#include <cstring>

#include "flash_attention_1.h"
#include "flash_decoding_pp.h"
#include "llm_decoder/errors.h"
#include "naive.h"
#include "paged_attention.h"

namespace llm_decoder {
namespace gpu {
namespace study {
namespace {

constexpr char kPlace[] = "run_method";

struct Named {
  const char* name;
  Method method;
};
constexpr Named kMethods[] = {{"naive", Method::naive},
                              {"flash_attention_1", Method::flash_attention_1},
                              {"flash_attention_2", Method::flash_attention_2},
                              {"flash_decoding", Method::flash_decoding},
                              {"flash_decoding_pp", Method::flash_decoding_pp},
                              {"paged_attention", Method::paged_attention}};

bool has_splits(Method method) {
  return method == Method::flash_decoding || method == Method::flash_decoding_pp || method == Method::paged_attention;
}
std::int64_t rows_of(const StudyArgs& a) { return std::int64_t{a.n_batch} * a.n_queries * a.n_heads; }
int blocks_for(std::int64_t n, int per_block) { return static_cast<int>(ceil_div(n, per_block)); }

// Keys that the blocks of attend_queries go over for one head: each tile of queries those that its last query sees.
std::int64_t keys_of_query_tiles(const StudyArgs& a) {
  std::int64_t n = 0;
  for (int first = 0; first < a.n_queries; first += kBlockQueries) {
    const int end = first + kBlockQueries < a.n_queries ? first + kBlockQueries : a.n_queries;
    n += a.n_keys - a.n_queries + end;
  }
  return n;
}

void check_args(Method method, const StudyArgs& a) {
  check_arg(a.n_batch > 0 && a.n_queries > 0 && a.n_keys >= a.n_queries, kPlace,
            "every query must be one of the keys' positions, got ", a.n_queries, " queries and ", a.n_keys, " keys");
  check_arg(a.n_kv_heads > 0 && a.n_heads % a.n_kv_heads == 0, kPlace, "n_heads must be a multiple of n_kv_heads, got ",
            a.n_heads, " and ", a.n_kv_heads);
  check_arg(a.head_dim > 0 && a.head_dim % 8 == 0 && a.head_dim <= kMaxStudyHeadDim, kPlace,
            "head_dim must be a multiple of 8 up to ", kMaxStudyHeadDim, ", got ", a.head_dim);
  check_arg(a.n_splits > 0 && (a.n_splits == 1 || has_splits(method)), kPlace, "this method does not split keys, got ",
            a.n_splits, " splits");
  check_arg(method != Method::paged_attention || (a.page_size > 0 && a.block_table != nullptr), kPlace,
            "paged attention needs a block table and a page size, got ", a.page_size);
}

template <auto kernel>
void run_rows(const StudyArgs& a, Stream stream) {
  launch<kernel>(stream, {{blocks_for(rows_of(a), kStudyWarps), 1, 1}, kStudyThreads, 0}, a);
}

template <auto kernel>
void run_queries(const StudyArgs& a, Stream stream) {
  launch<kernel>(stream,
                 {{blocks_for(a.n_queries, kBlockQueries), a.n_heads, a.n_batch * a.n_splits},
                  kStudyThreads,
                  study_shared_bytes(a.head_dim)},
                 a);
}

void run_naive(const StudyArgs& a, Stream stream) {
  launch<naive_scores_kernel>(stream, {{blocks_for(rows_of(a) * a.n_keys, kStudyThreads), 1, 1}, kStudyThreads, 0}, a);
  run_rows<naive_softmax_kernel>(a, stream);
  run_rows<naive_values_kernel>(a, stream);
}

void run_flash_decoding_pp(const StudyArgs& a, Stream stream) {
  const int n_flat = a.n_heads / a.n_kv_heads * a.n_queries, shared_bytes = study_shared_bytes(a.head_dim);
  launch<unified_max_kernel>(
      stream, {{blocks_for(n_flat, kFlatRows), a.n_kv_heads, a.n_batch * a.n_splits}, kStudyThreads, shared_bytes}, a);
  run_rows<add_splits_kernel>(a, stream);
  launch<recompute_wrong_kernel>(stream, {{static_cast<int>(rows_of(a)), 1, 1}, kStudyThreads, shared_bytes}, a);
}

}  // namespace

Method method_named(const char* name) {
  std::string names;
  for (const Named& named : kMethods) {
    if (std::strcmp(named.name, name) == 0) return named.method;
    names += concat(names.empty() ? "" : ", ", named.name);
  }
  throw std::invalid_argument(concat("[method_named] need one of ", names, "; got ", name));
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const Named& named : kMethods) names.push_back(named.name);
  return names;
}

int n_splits_for(Method method, const StudyArgs& a, int n_multiprocessors) {
  if (!has_splits(method)) return 1;
  const bool is_flat = method == Method::flash_decoding_pp;
  const int group = a.n_heads / a.n_kv_heads;
  const int n_blocks = is_flat ? blocks_for(group * a.n_queries, kFlatRows) * a.n_kv_heads
                               : blocks_for(a.n_queries, kBlockQueries) * a.n_heads;
  return choose_splits(n_blocks * a.n_batch, a.n_keys, n_multiprocessors);
}

int n_launches(Method method) {
  switch (method) {
    case Method::naive:
    case Method::flash_decoding_pp:
      return 3;
    case Method::flash_decoding:
    case Method::paged_attention:
      return 2;
    default:
      return 1;
  }
}

ScratchSizes scratch_sizes(Method method, const StudyArgs& a) {
  const auto n_rows = static_cast<std::size_t>(rows_of(a));
  ScratchSizes sizes;
  if (method == Method::naive) sizes.n_scores = n_rows * static_cast<std::size_t>(a.n_keys);
  if (method == Method::flash_attention_1) sizes.n_states = n_rows;
  if (has_splits(method)) sizes.n_states = n_rows * static_cast<std::size_t>(a.n_splits);
  if (method == Method::flash_decoding_pp) sizes.n_wrong_flags = n_rows;
  return sizes;
}

std::int64_t bytes_moved(Method method, const StudyArgs& a) {
  const std::int64_t n_rows = rows_of(a), row_bytes = std::int64_t{a.head_dim} * 2;
  const std::int64_t key_bytes = std::int64_t{a.n_batch} * a.n_heads * row_bytes * 2;
  const std::int64_t cache_of_heads = key_bytes * a.n_keys, cache_of_tiles = key_bytes * keys_of_query_tiles(a);
  const std::int64_t in_and_out = n_rows * row_bytes * 2, state_bytes = std::int64_t{a.head_dim + 2} * 4;
  const std::int64_t n_tiles = ceil_div(a.n_keys, kStudyKeys);
  const std::int64_t states = n_rows * a.n_splits * state_bytes * 2;
  switch (method) {
    case Method::naive:
      return n_rows * a.n_keys * (row_bytes * 2 + 16) + in_and_out;
    case Method::flash_attention_1:
      return cache_of_heads + n_rows * n_tiles * state_bytes * 2 + in_and_out;
    case Method::flash_attention_2:
      return cache_of_tiles + in_and_out;
    case Method::flash_decoding:
    case Method::paged_attention:
      return cache_of_tiles + states + in_and_out;
    case Method::flash_decoding_pp: {
      const std::int64_t group = a.n_heads / a.n_kv_heads;
      return cache_of_heads / group * ceil_div(group * a.n_queries, kFlatRows) + states + in_and_out;
    }
  }
  return 0;
}

void run_method(Method method, const StudyArgs& a, Stream stream) {
  check_args(method, a);
  switch (method) {
    case Method::naive:
      return run_naive(a, stream);
    case Method::flash_attention_1:
      return launch<flash_attention_1_kernel>(
          stream, {{a.n_heads, a.n_batch, 1}, kStudyThreads, study_shared_bytes(a.head_dim)}, a);
    case Method::flash_attention_2:
      return run_queries<flash_attention_2_kernel>(a, stream);
    case Method::flash_decoding:
      run_queries<flash_decoding_kernel>(a, stream);
      return run_rows<merge_splits_kernel>(a, stream);
    case Method::flash_decoding_pp:
      return run_flash_decoding_pp(a, stream);
    case Method::paged_attention:
      run_queries<paged_decoding_kernel>(a, stream);
      return run_rows<merge_splits_kernel>(a, stream);
  }
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
