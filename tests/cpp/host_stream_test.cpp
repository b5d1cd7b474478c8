// Streams of the host machine where they are late: what a device may do later is done as late as it may be.
#include "host_stream.h"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "device_memory.h"
#include "stream_mark.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

class LateStreams {
 public:
  LateStreams() { set_late_streams(true); }
  ~LateStreams() { set_late_streams(false); }
};

struct Ints {
  const int* in;
  int* out;
};

GPU_KERNEL add_one(const Ints args) { args.out[thread_index()] = args.in[thread_index()] + 1; }
GPU_KERNEL go_wrong(const Ints) { (void)shared_array<int>(0, 1); }

void launch_add_one(const DeviceArray<int>& from, const DeviceArray<int>& to, Stream stream) {
  launch<add_one>(stream, {{1, 1, 1}, 32, 0}, Ints{from.data(), to.data()});
}

TEST(late_work_is_done_in_its_order_when_it_is_waited_for) {
  const LateStreams late;
  const OwnedStream stream;
  const PinnedArray<int> in(32), out(32);
  const DeviceArray<int> a(32), b(32);
  std::fill_n(in.data(), 32, 4);
  copy_memory(a.data(), in.data(), a.n_bytes(), stream.get());
  launch_add_one(a, b, stream.get());
  launch_add_one(b, b, stream.get());
  copy_memory(out.data(), b.data(), b.n_bytes(), stream.get());
  CHECK_EQ(out.data()[0], -1);  // as new
  in.data()[0] = 7;             // too early: the copy has not begun
  synchronize(stream.get());
  CHECK_EQ(out.data()[0], 9);
  CHECK_EQ(out.data()[31], 6);
}

TEST(a_mark_waits_for_what_was_queued_before_it_alone) {
  const LateStreams late;
  const OwnedStream stream;
  const PinnedArray<int> first(32), second(32);
  const DeviceArray<int> a(32);
  std::memset(a.data(), 0, 32 * sizeof(int));
  StreamMark mark;
  mark.wait("a test");  // recorded nowhere
  copy_memory(first.data(), a.data(), a.n_bytes(), stream.get());
  mark.record(stream.get());
  copy_memory(second.data(), a.data(), a.n_bytes(), stream.get());
  mark.wait("a test");
  CHECK_EQ(first.data()[0], 0);
  CHECK_EQ(second.data()[0], -1);
  synchronize(stream.get());
  CHECK_EQ(second.data()[0], 0);
}

TEST(marks_tell_the_time_between_them_where_they_were_made_for_it) {
  const OwnedStream stream;
  StreamMark begin = StreamMark::timed(), end = StreamMark::timed(), untimed;
  CHECK(end.is_passed());  // recorded nowhere
  {
    const LateStreams late;
    for (StreamMark* const mark : {&begin, &untimed, &end}) mark->record(stream.get());
    CHECK(!end.is_passed());
    end.wait("a test");
  }
  CHECK(begin.is_passed() && end.is_passed());
  CHECK(end.seconds_since(begin) >= 0.0);
  CHECK_THROWS(std::logic_error, "not timed", untimed.seconds_since(begin));
  CHECK_THROWS(std::logic_error, "not timed", end.seconds_since(untimed));
  untimed = std::move(end);
  CHECK(untimed.seconds_since(begin) >= 0.0);
}

TEST(memory_that_is_not_pinned_is_read_and_written_before_the_call_returns) {
  const LateStreams late;
  const OwnedStream stream;
  const DeviceArray<int> a(3);
  std::vector<int> in = {3, 1, 4}, out(3);
  copy_memory(a.data(), in.data(), a.n_bytes(), stream.get());
  in = {0, 0, 0};
  copy_memory(out.data(), a.data(), a.n_bytes(), stream.get());
  CHECK(out == (std::vector<int>{3, 1, 4}));
}

TEST(what_goes_wrong_late_comes_out_of_the_wait) {
  const LateStreams late;
  const OwnedStream stream;
  const PinnedArray<int> out(32);
  const DeviceArray<int> a(32);
  std::memset(a.data(), 0, 32 * sizeof(int));
  launch<go_wrong>(stream.get(), {{1, 1, 1}, 32, 0}, Ints{nullptr, nullptr});
  StreamMark mark;
  mark.record(stream.get());
  copy_memory(out.data(), a.data(), a.n_bytes(), stream.get());
  CHECK_THROWS(std::logic_error, "the block has 0", mark.wait("a test"));
  synchronize(stream.get());
  CHECK_EQ(out.data()[0], 0);
}

TEST(an_array_that_grows_waits_for_what_reads_it) {
  const LateStreams late;
  const OwnedStream stream;
  const PinnedArray<int> out(1);
  DeviceArray<int> a(1);
  const DeviceArray<int> b(1);
  *a.data() = 5;
  grow(a, 1, stream.get());
  copy_memory(b.data(), a.data(), a.n_bytes(), stream.get());
  grow(a, 2, stream.get());  // waits
  copy_memory(out.data(), b.data(), b.n_bytes(), stream.get());
  synchronize(stream.get());
  CHECK_EQ(out.data()[0], 5);
}

TEST(streams_that_are_late_no_more_do_what_is_left_first) {
  const OwnedStream stream;
  const PinnedArray<int> in(32), out(32);
  const DeviceArray<int> a(32);
  std::fill_n(in.data(), 32, 4);
  {
    const LateStreams late;
    copy_memory(a.data(), in.data(), a.n_bytes(), stream.get());
  }
  copy_memory(out.data(), a.data(), a.n_bytes(), stream.get());
  CHECK_EQ(out.data()[0], 4);
}

}  // namespace
