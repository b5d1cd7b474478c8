// From a dtype that is known at run time to a type that a kernel is compiled for.
#pragma once

#include "elements.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {

template <class T>
struct Tag {
  using type = T;
};

// Calls fn(Tag<T>{}) with the T of a dtype that tensor cores multiply.
template <class Fn>
void with_half(Dtype dtype, const char* place, const char* name, const Fn& fn) {
  switch (dtype) {
    case Dtype::bf16:
      return fn(Tag<Bf16>{});
    case Dtype::f16:
      return fn(Tag<Fp16>{});
    default:
      break;
  }
  check_arg(false, place, name, " must be bfloat16 or float16, got ", dtype_name(dtype));
}

// Calls fn(Tag<T>{}) with the T of activations.
template <class Fn>
void with_activation(Dtype dtype, const char* place, const char* name, const Fn& fn) {
  switch (dtype) {
    case Dtype::f32:
      return fn(Tag<float>{});
    case Dtype::bf16:
      return fn(Tag<Bf16>{});
    case Dtype::f16:
      return fn(Tag<Fp16>{});
    default:
      break;
  }
  check_arg(false, place, name, " must be float32, bfloat16 or float16, got ", dtype_name(dtype));
}

// Calls fn(Tag<T>{}) with the T of pages, whatever is appended to them.
template <class Fn>
void with_page(Dtype dtype, const char* place, const char* name, const Fn& fn) {
  switch (dtype) {
    case Dtype::bf16:
      return fn(Tag<Bf16>{});
    case Dtype::f16:
      return fn(Tag<Fp16>{});
    case Dtype::fp8:
      return fn(Tag<Fp8>{});
    case Dtype::s8:
      return fn(Tag<Int8>{});
    default:
      break;
  }
  check_arg(false, place, name, " must be bfloat16, float16, fp8 or int8, got ", dtype_name(dtype));
}

// Calls fn(Tag<T>{}) with the T of pages whose queries are of type Q: the same type, or one of bytes.
template <class Q, class Fn>
void with_page_element(Dtype q_dtype, Dtype dtype, const char* place, const char* name, const Fn& fn) {
  if (dtype == q_dtype) return fn(Tag<Q>{});
  switch (dtype) {
    case Dtype::fp8:
      return fn(Tag<Fp8>{});
    case Dtype::s8:
      return fn(Tag<Int8>{});
    default:
      break;
  }
  check_arg(false, place, name, " must be ", dtype_name(q_dtype), ", fp8 or int8 like the queries, got ",
            dtype_name(dtype));
}

}  // namespace gpu
}  // namespace llm_decoder
