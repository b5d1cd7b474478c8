// _core.PromptLookup: guesses for one sequence. The GIL is kept: a look-up takes about a microsecond.
#include <pybind11/pybind11.h>

#include "array_view.h"
#include "prompt_lookup.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

py::array_t<std::int32_t> propose(PromptLookup& lookup, const py::array& tokens, std::int32_t max_tokens,
                                  double min_chance) {
  const Span<const std::int32_t> seen = read_array<std::int32_t>(tokens, "PromptLookup.propose", "tokens");
  const Span<const std::int32_t> draft = lookup.propose(seen, max_tokens, min_chance);
  return copy_to_array(draft.data, {static_cast<py::ssize_t>(draft.size)});
}

}  // namespace

void register_prompt_lookup(py::module_& m);

void register_prompt_lookup(py::module_& m) {
  py::class_<PromptLookup>(m, "PromptLookup",
                           "What may come next in one sequence: what followed its newest tokens before.\n\nThe longest "
                           "run of newest tokens that occurs earlier counts, and what followed it most often. It notes "
                           "how often that was right.")
      .def(py::init<>())
      .def("propose", &propose, py::arg("tokens"), py::arg("max_tokens"), py::arg("min_chance"),
           "tokens: int32 [n], the whole sequence so far, which has only grown since the last call. Returns int32 [at "
           "most max_tokens]:\nas many as are likely, with min_chance or more, to be all right.");
}

}  // namespace llm_decoder
