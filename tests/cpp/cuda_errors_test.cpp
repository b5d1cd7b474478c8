// What each kind of error of the CUDA runtime becomes.
#include "cuda_errors.h"

#include "check.h"
#include "device_memory.h"
#include "llm_decoder/errors.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

TEST(memory_that_a_device_refuses_is_out_of_memory) {
  CHECK_THROWS(OutOfMemory, "[launch] cudaErrorMemoryAllocation: out of memory",
               throw_cuda_error("launch", 2, "cudaErrorMemoryAllocation", "out of memory"));
}

TEST(an_error_after_which_nothing_works_is_a_device_that_is_lost_with_what_to_do) {
  for (const int code : {700, 702, 710, 714, 715, 716, 717, 718, 719, 721}) {
    CHECK_THROWS(DeviceLost, "compute-sanitizer", throw_cuda_error("synchronize", code, "name", "words"));
  }
  for (const int code : {214, 220, 226, 810, 911, 999}) {
    CHECK_THROWS(DeviceLost, "Xid", throw_cuda_error("synchronize", code, "name", "words"));
  }
  CHECK_THROWS(DeviceLost, "[synchronize] cudaErrorIllegalAddress: words; the GPU is lost to this process",
               throw_cuda_error("synchronize", 700, "cudaErrorIllegalAddress", "words"));
}

TEST(another_error_is_that_of_a_call) {
  bool is_lost = false;
  try {
    throw_cuda_error("use_device", 101, "cudaErrorInvalidDevice", "invalid device ordinal");
  } catch (const DeviceLost&) {
    is_lost = true;
  } catch (const std::runtime_error& error) {
    CHECK_EQ(std::string(error.what()), "[use_device] cudaErrorInvalidDevice: invalid device ordinal");
  }
  CHECK(!is_lost);
}

TEST(the_host_machine_fails_as_asked_until_told_otherwise) {
  const OwnedStream stream;
  set_host_fault(700);
  int from = 1, to = 0;
  CHECK_THROWS(DeviceLost, "[synchronize]", synchronize(stream.get()));
  CHECK_THROWS(DeviceLost, "[a test]", check_not_lost("a test"));
  CHECK_THROWS(DeviceLost, "[copy_memory]", copy_memory(&to, &from, sizeof(int), stream.get()));
  CHECK_EQ(to, 0);
  set_host_fault(0);
  check_not_lost("a test");
  copy_memory(&to, &from, sizeof(int), stream.get());
  synchronize(stream.get());
  CHECK_EQ(to, 1);
  CHECK_EQ(cuda_versions().driver, 0);
}

}  // namespace
