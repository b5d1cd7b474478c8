// Embedding rows on the host machine: what the table holds, zeros for ids that it lacks.
#include <string>

#include "check.h"
#include "embed_launch.h"
#include "row_rig.h"

namespace {

using namespace rig;

const std::vector<std::int32_t> kIds = {2, 0, 4, -1, 5, 2, -2147483647 - 1, 2147483647};
constexpr int kVocabSize = 5;

template <class Want>
void check_rows(EmbedLaunch l, Rows& out, int n_cols, const std::string& name, const Want& want) {
  l.ids = kIds.data();
  l.out = out.out();
  l.n_rows = static_cast<std::int64_t>(kIds.size());
  l.vocab_size = kVocabSize;
  l.n_cols = n_cols;
  embed(l, nullptr);
  for (std::size_t row = 0; row < kIds.size(); ++row) {
    const int id = kIds[row];
    for (int i = 0; i < n_cols; ++i) {
      const float expected = id >= 0 && id < kVocabSize ? out.rounded(want(id, i)) : 0.0f;
      if (out.get(static_cast<int>(row), i) != expected) {
        check::fail(__FILE__, __LINE__, name, ": row ", row, ", column ", i, ": got ",
                    out.get(static_cast<int>(row), i), ", want ", expected);
      }
    }
  }
  CHECK(out.padding_is_whole());
}

TEST(rows_are_those_of_the_table_in_every_dtype) {
  for (const int n_cols : {1, 3, 31, 33, 64, 1024, 1031}) {
    for (int bits = 0; bits < 8; ++bits) {
      const Dtype half = bits & 4 ? Dtype::f16 : Dtype::bf16;
      const int padding = n_cols % 2 == 0 ? 8 : 3;
      Rows table(kVocabSize, n_cols, bits & 1 ? half : Dtype::f32, padding, bits % 2);
      Rows out(static_cast<int>(kIds.size()), n_cols, bits & 2 ? half : Dtype::f32, padding);
      table.fill_normal(1, 1.0f);
      EmbedLaunch l;
      l.table = table.tensor();
      check_rows(l, out, n_cols, concat("rows of ", n_cols, ", dtypes ", bits),
                 [&](int id, int i) { return table.get(id, i); });
    }
  }
}

TEST(rows_of_int8_are_scaled) {
  for (const int n_cols : {1, 31, 64, 1032}) {
    for (const int padding : {0, 3, 8}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        Int8Rows table(kVocabSize, n_cols, padding);
        for (int id = 0; id < kVocabSize; ++id) {
          table.scale[index(id)] = 0.01f * static_cast<float>(id + 1);
          for (int i = 0; i < n_cols; ++i) {
            table.q[index(id * table.stride + i)] = static_cast<std::int8_t>((id * 31 + i * 7) % 255 - 127);
          }
        }
        Rows out(static_cast<int>(kIds.size()), n_cols, dtype, 8);
        EmbedLaunch l;
        l.table = {table.q.data(), Dtype::s8, table.stride};
        l.scale = table.scale.data();
        check_rows(l, out, n_cols, concat("int8 rows of ", n_cols, " as ", dtype_name(dtype)),
                   [&](int id, int i) { return static_cast<float>(table.get(id, i)) * table.scale[index(id)]; });
      }
    }
  }
}

TEST(what_no_kernel_takes_is_refused) {
  Rows table(kVocabSize, 8, Dtype::bf16, 0), out(1, 8, Dtype::f16, 0);
  EmbedLaunch l;
  l.table = table.tensor();
  l.out = out.out();
  l.n_cols = 8;
  CHECK_THROWS(std::invalid_argument, "vocab_size at least 1", embed(l, nullptr));
  l.vocab_size = kVocabSize;
  CHECK_THROWS(std::invalid_argument, "out must be float32 or bfloat16 like table, got float16", embed(l, nullptr));
  l.table.dtype = Dtype::s8;
  CHECK_THROWS(std::invalid_argument, "scale must be there for a table of int8", embed(l, nullptr));
  l.table.dtype = Dtype::fp8;
  CHECK_THROWS(std::invalid_argument, "table must be float32, bfloat16 or float16, got fp8", embed(l, nullptr));
}

}  // namespace
