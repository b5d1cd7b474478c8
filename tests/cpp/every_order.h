// Kernels launched in several orders of their threads, and the errors that the host machine must find in each.
#pragma once

#include <stdexcept>

#include "check.h"
#include "machine.h"

namespace llm_decoder {
namespace gpu {

inline const Order kOrders[] = {
    {Order::Kind::ascending, 0}, {Order::Kind::descending, 0}, {Order::Kind::shuffled, 1}, {Order::Kind::shuffled, 2}};

// Launches in every order; `check` looks at the results after each.
template <auto kernel, class Args, class Check>
void in_every_order(const LaunchShape& shape, const Args& args, const Check& check) {
  for (const Order& order : kOrders) {
    set_host_order(order);
    launch<kernel>(nullptr, shape, args);
    check();
  }
  set_host_order({});
}

template <auto kernel, class Args>
void expect_error([[maybe_unused]] const LaunchShape& shape, [[maybe_unused]] const Args& args,
                  [[maybe_unused]] const char* part) {
#if !defined(LLM_DECODER_ON_DEVICE)  // which would not tell
  for (const Order& order : kOrders) {
    set_host_order(order);
    CHECK_THROWS(std::logic_error, part, launch<kernel>(nullptr, shape, args));
  }
  set_host_order({});
#endif
}

}  // namespace gpu
}  // namespace llm_decoder
