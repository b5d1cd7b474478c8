// One message form for every error: [place] need, got; remedy. std exceptions only, so pybind11 maps them:
// std::invalid_argument -> ValueError, std::bad_alloc -> MemoryError, std::logic_error/std::runtime_error ->
// RuntimeError.
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace llm_decoder {

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Throws std::invalid_argument("[place] message...") when `ok` is false. For what a caller can get wrong.
template <class... Parts>
void check_arg(bool ok, const char* place, const Parts&... message) {
  if (!ok) throw std::invalid_argument(concat("[", place, "] ", message...));
}

// Throws std::logic_error when `ok` is false. For what only a bug of ours can get wrong.
template <class... Parts>
void check_state(bool ok, const char* place, const Parts&... message) {
  if (!ok) throw std::logic_error(concat("[", place, "] ", message...));
}

// Memory that was not to be had, with a message that says how much and what to do.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace llm_decoder
