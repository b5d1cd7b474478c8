// A thread's device, chosen for a while. Others in the process (torch) have a current device too, which must be theirs
// again afterwards.
#pragma once

#include "device_memory.h"

namespace llm_decoder {
namespace gpu {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(current_device()), is_changed_(device != before_) {
    if (is_changed_) use_device(device);
  }
  ~DeviceGuard() {
    try {
      if (is_changed_) use_device(before_);
    } catch (const std::exception&) {  // it worked before: the next call of the runtime says what has happened since
    }
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  const int before_;
  const bool is_changed_;
};

}  // namespace gpu
}  // namespace llm_decoder
