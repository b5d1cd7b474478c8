// The whole test framework of the C++ tests, so that they need nothing but a compiler. Include it in exactly one file
// of a test program; it brings main.
//
//   TEST(release_keeps_a_page_shared_by_a_fork) {
//     CHECK(cache.reserve(ids, counts));
//     CHECK_EQ(cache.stats().n_held, 2);
//     CHECK_THROWS(std::invalid_argument, "seq_id", cache.release(7));
//   }
//
// A failed check ends its test; the other tests still run. `program PART` runs only the tests whose name holds PART.
//
// HOST_TEST is a test that a device cannot pass: of what the host machine alone catches, or of memory that a device
// does not reach. on_device.h runs the others there.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text << file << ":" << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

template <class A, class B>
void equal(const A& got, const B& want, const char* expression, const char* file, int line) {
  if (!(got == want)) fail(file, line, expression, ": got ", got, ", want ", want);
}

inline void message_holds(const std::exception& error, const std::string& part, const char* file, int line) {
  const std::string message = error.what();
  if (message.find(part) == std::string::npos) fail(file, line, "message \"", message, "\" lacks \"", part, "\"");
}

inline bool run(const Test& test) {
#if defined(LLM_DECODER_ON_DEVICE)
  std::fprintf(stderr, "%s\n", test.name);  // its kernels may never end
#endif
  try {
    test.body();
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED %s\n  %s\n", test.name, error.what());
    return false;
  }
}

inline int run_all(int argc, char** argv) {
  int n_run = 0, n_failed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) continue;
    ++n_run;
    n_failed += run(test) ? 0 : 1;
  }
  std::printf("%d tests, %d failed\n", n_run, n_failed);
  return n_run > 0 && n_failed == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(test_name)                                                                \
  static void test_name();                                                             \
  static const check::Registration registration_of_##test_name(#test_name, test_name); \
  static void test_name()

#define CHECK(...)                                                     \
  do {                                                                 \
    if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, #__VA_ARGS__); \
  } while (false)

#if defined(LLM_DECODER_ON_DEVICE)
#define HOST_TEST(test_name) \
  template <class>           \
  static void test_name()  // never made
#else
#define HOST_TEST TEST
#endif

// Both sides must be printable.
#define CHECK_EQ(got, ...) check::equal((got), (__VA_ARGS__), #got, __FILE__, __LINE__)

// The expression must throw exactly this exception, or one derived from it, whose message holds `part`.
#define CHECK_THROWS(Exception, part, ...)                                                         \
  do {                                                                                             \
    bool has_thrown = false;                                                                       \
    try {                                                                                          \
      (void)(__VA_ARGS__);                                                                         \
    } catch (const Exception& error) {                                                             \
      has_thrown = true;                                                                           \
      check::message_holds(error, part, __FILE__, __LINE__);                                       \
    }                                                                                              \
    if (!has_thrown) check::fail(__FILE__, __LINE__, #__VA_ARGS__, " has not thrown " #Exception); \
  } while (false)

int main(int argc, char** argv) {
#if defined(LLM_DECODER_ON_DEVICE)
  return on_device::run(check::run_all, argc, argv);
#else
  return check::run_all(argc, argv);
#endif
}
