// All that a kernel uses of a GPU, in one vocabulary with two implementations: the device's (machine_cuda.h, compiled
// by nvcc) and a host's (machine_host.h, compiled by any C++17 compiler), where a block's threads are fibers and every
// misuse is an error. A kernel that speaks only these words runs on both.
//
//   GPU_KERNEL, GPU_FUNCTION           mark an entry and what it calls; GPU_UNROLL a loop over registers
//   launch<kernel>(stream, shape, args)
//
//   thread_index() n_threads()         of the block; blocks are one-dimensional
//   lane() warp_index()
//   block_index() grid_size()          {x, y, z}
//   sync_block() sync_block_or(bool)   every thread of the block must come; the second tells whether any said true
//   sync_warp()                        every lane of the warp must come, as to all that follow here
//   shuffle(value, lane) shuffle_xor(value, mask) any(bool) ballot(bool)
//   reduce_max(x) reduce_add(x)        of the warp's 32-bit unsigned numbers, for every lane
//
//   Shared<T>                          a run of shared memory: load(i) store(i, x), load_vec<n>(i) store_vec(i, v),
//                                      atomic_add(i, x), atomic_or(i, x), part(begin, n)
//   shared_array<T>(byte_offset, n)    out of the block's shared memory, which holds garbage at first
//   copy_async<n_bytes>(shared, i, from, is_valid)   4, 8 or 16 bytes from global memory, zeros instead when not valid.
//                                      It lands at any time until the same thread's wait_copies; others see it after a
//                                      barrier then.
//   commit_copies() wait_copies<n>()   closes a group; waits until at most n of this thread's groups are in flight
//
//   load_matrices(r, shared, i)        ldmatrix.x4: four 8 x 8 matrices of 16-bit elements, the row of 8 at i of lane
//                                      8 j + row is a row of matrix j; lane l receives elements 2 (l % 4) and the next
//                                      of row l / 4 of matrix j in r[j]
//   load_matrices_transposed(r, shared, i)  the same of the transposed matrices
//   mma_16x8x16<T>(d, a, b)            d += a b with T Bf16 or Fp16, d in float: tensor cores, fragments as the PTX
//   mma_16x8x32(d, a, b)               manual draws them for m16n8k16 and m16n8k32; this one int8 with d in int32
//
//   fma_pairs<T>(a, b, c)              a b + c of two pairs at once, subnormal numbers and all, rounded once
//   permute_bytes(low, high, selector) byte i is the one that hex digit i of the selector names: 0 to 3 of low, 4 to 7
//                                      of high
//   convert_fp8<T>(word)               the two Fp8 in the low half of a word as two of T; where kConvertsFp8
//   pack<T>(low, high) unpack<T>(word) two floats as two of Bf16 or Fp16 in a word; two floats of such a word
//   load_vec<n>(pointer) store_vec(pointer, v)   global memory, aligned to the vector
//   load_once<n>(pointer)              16 bytes that nobody writes and no other thread of the block reads
//   load_coherent(pointer)             what other blocks wrote before an atomic that this thread has seen
//   atomic_add(pointer, x) fence()     global memory
//   exp2 log2 reciprocal rsqrt tanh erf fma
//   log(x)                             of a double, within its rounding
//   round_to_int(x)                    to the nearest, ties to even; 0 for NaN
//
// What devices with warpgroups have besides is in machine_hopper.h.
//
// Global memory is plain pointers: the host's is under AddressSanitizer. Shared memory is never a pointer.
#pragma once

#include "machine_types.h"

#if defined(LLM_DECODER_HOST_MACHINE)
#include "machine_host.h"
#else
#include "machine_cuda.h"
#endif
