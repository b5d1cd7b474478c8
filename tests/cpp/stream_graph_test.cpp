// Graphs of a stream: what was recorded, and nothing else, is done again on what lies there then.
#include "stream_graph.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

struct Ints {
  const int* in;
  int* out;
};

GPU_KERNEL add_to(const Ints args) { args.out[thread_index()] += args.in[thread_index()]; }

struct Sums {
  OwnedStream stream;
  DeviceArray<int> in{32}, sum{32};
  PinnedArray<int> out{32};

  Sums() {
    std::fill_n(in.data(), 32, 1);
    std::fill_n(sum.data(), 32, 0);
  }
  void add() const { launch<add_to>(stream.get(), {{1, 1, 1}, 32, 0}, Ints{in.data(), sum.data()}); }
  StreamGraph record() const {
    return record_graph(stream.get(), [this] {
      add();
      add();
      copy_memory(out.data(), sum.data(), sum.n_bytes(), stream.get());
    });
  }
};

TEST(what_is_recorded_is_not_done_until_the_graph_is_launched) {
  const Sums sums;
  const StreamGraph graph = sums.record();
  CHECK(graph.n_bytes() > 0);
  CHECK_EQ(sums.sum.data()[0], 0);
  graph.launch(sums.stream.get());
  synchronize(sums.stream.get());
  CHECK_EQ(sums.out.data()[0], 2);
}

TEST(a_graph_reads_what_is_there_when_it_runs) {
  const Sums sums;
  const StreamGraph graph = sums.record();
  graph.launch(sums.stream.get());
  sums.add();  // between two launches, and in no graph
  std::fill_n(sums.in.data(), 32, 10);
  graph.launch(sums.stream.get());
  synchronize(sums.stream.get());
  CHECK_EQ(sums.out.data()[31], 2 + 1 + 20);
}

TEST(a_graph_waits_with_the_rest_of_a_late_stream) {
  const Sums sums;
  const StreamGraph graph = sums.record();
  set_late_streams(true);
  graph.launch(sums.stream.get());
  sums.add();
  set_late_streams(false);
  CHECK_EQ(sums.sum.data()[0], 0);
  synchronize(sums.stream.get());
  CHECK_EQ(sums.sum.data()[0], 3);
  CHECK_EQ(sums.out.data()[0], 2);
}

TEST(what_cannot_be_recorded_is_refused_and_the_stream_goes_on) {
  const Sums sums;
  std::vector<int> pageable(32);
  const auto refused = [&](const char* why, const std::function<void()>& work) {
    CHECK_THROWS(std::logic_error, why, record_graph(sums.stream.get(), [&] {
                   sums.add();
                   work();
                 }));
  };
  refused("cannot be waited for", [&] { synchronize(sums.stream.get()); });
  refused("memory cannot be taken", [] { DeviceArray<int>(1); });
  refused("device and pinned memory alone",
          [&] { copy_memory(pageable.data(), sums.sum.data(), sums.sum.n_bytes(), sums.stream.get()); });
  refused("is being recorded already", [&] { (void)record_graph(sums.stream.get(), [] {}); });
  CHECK_THROWS(std::logic_error, "null stream", record_graph(nullptr, [] {}));
  CHECK_EQ(sums.sum.data()[0], 0);
  sums.add();
  CHECK_EQ(sums.sum.data()[0], 1);
}

}  // namespace
