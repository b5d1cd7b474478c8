// cuBLASLt, loaded when it is asked for: neither its headers nor its half gigabyte are part of the build. What is
// declared here is its binary interface, the same in versions 12 and 13 (cuBLAS Library User Guide, section "Using the
// cuBLASLt API").
#include <dlfcn.h>

#include <cstring>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>

#include "dense_gemm.h"
#include "device_memory.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "cuBLASLt";
constexpr char kInstall[] =
    "; `pip install 'llm_decoder[cuda]'` brings it, LLM_DECODER_GEMM=ours does without it, more slowly";
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
constexpr std::int64_t kWorkspaceBytes = 32 << 20;  // what its algorithms ask for on Hopper at most

using Handle = void*;      // cublasLtHandle_t
using Descriptor = void*;  // cublasLtMatmulDesc_t
using Layout = void*;      // cublasLtMatrixLayout_t
using Preference = void*;  // cublasLtMatmulPreference_t
using Status = int;        // cublasStatus_t

struct Algorithm {  // cublasLtMatmulAlgo_t
  std::uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  std::size_t workspace_bytes;
  Status status;
  float n_waves;
  int reserved[4];
};

// cudaDataType_t
constexpr int kFloat = 0, kFp16 = 2, kBf16 = 14;
constexpr int kComputeFloat = 68;  // CUBLAS_COMPUTE_32F
// cublasOperation_t
constexpr std::int32_t kNormal = 0, kTransposed = 1;
// cublasLtMatmulDescAttributes_t
constexpr int kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8;
constexpr std::uint32_t kAddBias = 4;  // CUBLASLT_EPILOGUE_BIAS
// cublasLtMatmulPreferenceAttributes_t
constexpr int kMaxWorkspaceBytes = 1, kAlignmentOf[] = {5, 6, 7, 8};
constexpr std::uint32_t kAlignment = 16;

int cuda_type(Dtype dtype) { return dtype == Dtype::f32 ? kFloat : dtype == Dtype::f16 ? kFp16 : kBf16; }

// The functions of the library, under the names that they have there less "cublasLt".
struct Functions {
  Status (*Create)(Handle*);
  Status (*Destroy)(Handle);
  const char* (*GetStatusString)(Status);
  Status (*MatmulDescCreate)(Descriptor*, int compute_type, int scale_type);
  Status (*MatmulDescDestroy)(Descriptor);
  Status (*MatmulDescSetAttribute)(Descriptor, int attribute, const void* value, std::size_t n_bytes);
  Status (*MatrixLayoutCreate)(Layout*, int type, std::uint64_t n_rows, std::uint64_t n_columns, std::int64_t stride);
  Status (*MatrixLayoutDestroy)(Layout);
  Status (*MatmulPreferenceCreate)(Preference*);
  Status (*MatmulPreferenceDestroy)(Preference);
  Status (*MatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, std::size_t n_bytes);
  Status (*MatmulAlgoGetHeuristic)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, Preference, int n_wanted,
                                   Heuristic* results, int* n_found);
  Status (*Matmul)(Handle, Descriptor, const void* alpha, const void* a, Layout, const void* b, Layout,
                   const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace,
                   std::size_t workspace_bytes, Stream);
};

void* open_library(const std::vector<std::string>& libraries) {
  const std::vector<std::string> known(std::begin(kNames), std::end(kNames));
  std::string said;
  for (const std::string& name : libraries.empty() ? known : libraries) {
    if (void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* const error = dlerror();
    said += concat(said.empty() ? "" : "; ", error != nullptr ? error : name.c_str());
  }
  throw std::runtime_error(concat("[", kPlace, "] products of many rows need its library, got: ", said, kInstall));
}

Functions load_functions(const std::vector<std::string>& libraries) {
  void* const library = open_library(libraries);  // stays for the life of the process
  Functions functions{};
  const auto load = [&](auto& function, const char* name) {
    void* const symbol = dlsym(library, concat("cublasLt", name).c_str());
    if (symbol == nullptr) {
      throw std::runtime_error(
          concat("[", kPlace, "] the library must have cublasLt", name, ", got one without", kInstall));
    }
    static_assert(sizeof(function) == sizeof(symbol), "a function's address is one");
    std::memcpy(&function, &symbol, sizeof(symbol));
  };
  load(functions.Create, "Create");
  load(functions.Destroy, "Destroy");
  load(functions.GetStatusString, "GetStatusString");
  load(functions.MatmulDescCreate, "MatmulDescCreate");
  load(functions.MatmulDescDestroy, "MatmulDescDestroy");
  load(functions.MatmulDescSetAttribute, "MatmulDescSetAttribute");
  load(functions.MatrixLayoutCreate, "MatrixLayoutCreate");
  load(functions.MatrixLayoutDestroy, "MatrixLayoutDestroy");
  load(functions.MatmulPreferenceCreate, "MatmulPreferenceCreate");
  load(functions.MatmulPreferenceDestroy, "MatmulPreferenceDestroy");
  load(functions.MatmulPreferenceSetAttribute, "MatmulPreferenceSetAttribute");
  load(functions.MatmulAlgoGetHeuristic, "MatmulAlgoGetHeuristic");
  load(functions.Matmul, "Matmul");
  return functions;
}

// One of the library's objects.
class Owned {
 public:
  explicit Owned(Status (*destroy)(void*)) : destroy_(destroy) {}
  ~Owned() {
    if (object_ != nullptr) destroy_(object_);
  }
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)), destroy_(other.destroy_) {}
  Owned& operator=(Owned&&) = delete;

  void* get() const { return object_; }
  void** made() { return &object_; }

 private:
  void* object_ = nullptr;
  Status (*destroy_)(void*);
};

class CublasltGemm : public DenseGemm {
 public:
  explicit CublasltGemm(const std::vector<std::string>& libraries)
      : functions_(load_functions(libraries)), handle_(functions_.Destroy) {
    check(functions_.Create(handle_.made()), "cublasLtCreate");
  }

  const char* name() const override { return "cublaslt"; }
  bool takes(int) const override { return true; }
  std::int64_t workspace_bytes() const override { return kWorkspaceBytes; }

  void run(const GemmLaunch& l, void* workspace, Stream stream) override {
    if (l.m == 0) return;
    const Plan& plan = plan_for(l);
    if (l.bias != nullptr) set(plan.descriptor, kBiasPointer, l.bias);
    const float one = 1.0f, zero = 0.0f;
    check(functions_.Matmul(handle_.get(), plan.descriptor.get(), &one, l.w, plan.w.get(), l.a.data, plan.a.get(),
                            &zero, l.out.data, plan.out.get(), l.out.data, plan.out.get(), &plan.algorithm, workspace,
                            static_cast<std::size_t>(kWorkspaceBytes), stream),
          "cublasLtMatmul");
  }

 private:
  // What is chosen once for all products of the same sizes.
  struct Plan {
    Owned descriptor, w, a, out;
    Algorithm algorithm{};
  };
  using Key = std::tuple<int, int, int, std::int64_t, std::int64_t, Dtype, Dtype, bool>;

  void check(Status status, const char* what) const {
    if (status == 0) return;
    check_not_lost(kPlace);
    throw std::runtime_error(concat("[", kPlace, "] ", what, ": ", functions_.GetStatusString(status)));
  }

  template <class T>
  void set(const Owned& descriptor, int attribute, const T& value) const {
    check(functions_.MatmulDescSetAttribute(descriptor.get(), attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute");
  }

  // A row-major matrix of ours is its transpose to the library, whose columns lie together.
  Owned layout_of(Dtype dtype, int n_rows, int n_columns, std::int64_t stride) const {
    Owned layout(functions_.MatrixLayoutDestroy);
    check(functions_.MatrixLayoutCreate(layout.made(), cuda_type(dtype), static_cast<std::uint64_t>(n_columns),
                                        static_cast<std::uint64_t>(n_rows), stride),
          "cublasLtMatrixLayoutCreate");
    return layout;
  }

  // out^T [n, m] = (w^T)^T a^T
  const Plan& plan_for(const GemmLaunch& l) {
    const Key key{l.m, l.n, l.k, l.a.stride, l.out.stride, l.a.dtype, l.out.dtype, l.bias != nullptr};
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    Plan plan{Owned(functions_.MatmulDescDestroy), layout_of(l.a.dtype, l.n, l.k, l.k),
              layout_of(l.a.dtype, l.m, l.k, l.a.stride), layout_of(l.out.dtype, l.m, l.n, l.out.stride)};
    check(functions_.MatmulDescCreate(plan.descriptor.made(), kComputeFloat, kFloat), "cublasLtMatmulDescCreate");
    set(plan.descriptor, kTransposeA, kTransposed);
    set(plan.descriptor, kTransposeB, kNormal);
    if (l.bias != nullptr) {
      set(plan.descriptor, kEpilogue, kAddBias);
      set(plan.descriptor, kBiasPointer, l.bias);
    }
    plan.algorithm = choose_algorithm(l, plan);
    return plans_.emplace(key, std::move(plan)).first->second;
  }

  Algorithm choose_algorithm(const GemmLaunch& l, const Plan& plan) const {
    Owned preference(functions_.MatmulPreferenceDestroy);
    check(functions_.MatmulPreferenceCreate(preference.made()), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](int attribute, const auto& value) {
      check(functions_.MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(kMaxWorkspaceBytes, std::uint64_t{kWorkspaceBytes});
    for (const int attribute : kAlignmentOf) prefer(attribute, kAlignment);
    Heuristic found{};
    int n_found = 0;
    check(functions_.MatmulAlgoGetHeuristic(handle_.get(), plan.descriptor.get(), plan.w.get(), plan.a.get(),
                                            plan.out.get(), plan.out.get(), preference.get(), 1, &found, &n_found),
          "cublasLtMatmulAlgoGetHeuristic");
    if (n_found == 0 || found.status != 0) {
      throw std::runtime_error(concat("[", kPlace, "] it has no algorithm for ", l.m, " x ", l.n, " x ", l.k, " in ",
                                      dtype_name(l.a.dtype), " to ", dtype_name(l.out.dtype),
                                      "; LLM_DECODER_GEMM=ours does without it"));
    }
    return found.algorithm;
  }

  const Functions functions_;
  Owned handle_;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<DenseGemm> make_cublaslt_gemm(const std::vector<std::string>& libraries) {
  return std::make_unique<CublasltGemm>(libraries);
}

}  // namespace gpu
}  // namespace llm_decoder
