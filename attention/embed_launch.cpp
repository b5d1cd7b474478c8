#include "embed_launch.h"

#include "embed.h"

namespace llm_decoder {
namespace gpu {

void embed(const EmbedLaunch& l, Stream stream) {
  constexpr char kPlace[] = "embed";
  const bool is_int8 = l.table.dtype == Dtype::s8;
  check_arg(is_int8 == (l.scale != nullptr), kPlace, "scale must be there for a table of int8 and for no other, got ",
            dtype_name(l.table.dtype), l.scale != nullptr ? " with it" : " without it");
  check_arg(l.n_rows >= 0 && l.n_rows < std::int64_t{1} << 31 && l.n_cols >= 1 && l.vocab_size >= 1, kPlace,
            "n_rows must be 0 to 2^31 - 1, n_cols and vocab_size at least 1, got ", l.n_rows, ", ", l.n_cols, " and ",
            l.vocab_size);
  with_half_among({{"table", is_int8 ? Dtype::f32 : l.table.dtype}, {"out", l.out.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (l.n_rows == 0) return;
    EmbedArgs args;
    if (is_int8) {
      args.q = static_cast<const std::int8_t*>(l.table.data);
      args.q_stride = l.table.stride;
      args.q_is_aligned = rows_are_aligned(args.q, args.q_stride, 8);
      args.scale = l.scale;
    } else {
      args.table = row_array(l.table);
    }
    args.ids = l.ids;
    args.out = row_array(l.out);
    args.vocab_size = l.vocab_size;
    args.n_cols = l.n_cols;
    const auto n_chunks = static_cast<int>(ceil_div(l.n_cols, kEight * kEmbedThreads));
    gpu::launch<embed_rows_kernel<H>>(stream, {{static_cast<int>(l.n_rows), n_chunks, 1}, kEmbedThreads, 0}, args);
  });
}

}  // namespace gpu
}  // namespace llm_decoder
