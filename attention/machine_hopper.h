// The words of machine.h that devices of compute capability 9.0 alone have, when compiled for sm_90a: products of
// warpgroups, barriers that are objects, copies by tensor map, registers that change hands. The host machine has them
// all. A kernel asks kHasWarpgroups before it speaks one of them.
//
//   GPU_KERNEL_OF(n)                   marks an entry whose block has n threads and a multiprocessor for itself
//   GPU_ARGUMENT                       before its argument: maps of tensors are read where the launch left them
//   GPU_UNROLL_BY(n)                   a loop whose passes need few registers at once
//   kHasWarpgroups                     whether the words below may be reached; trap() where a kernel was all the same
//
//   warpgroup_index()                  128 threads, four warps
//   sync_warpgroup()                   every thread of the warpgroup must come
//   give_registers<n>() take_registers<n>()   every warp of the warpgroup from now on has n registers a thread, fewer
//   or
//                                      more than before; takers wait until others have given
//   larger(a, b)
//
//   Barriers                           objects in shared memory (tile_ring.h tells their phases):
//     shared_barriers(byte_offset, n)
//     init(i, n_arrivals)              by one thread, which then calls publish_barriers(); others after a barrier
//     arrive(i)                        what this thread did and saw before is seen by who waits
//     arrive_expecting(i, n_bytes)     the same; the phase then also waits for so many bytes of copies by tensor map
//     wait(i, parity)
//   TensorMap make_tensor_map(boxes)   on the host; of TensorBoxes (tensor_boxes.h)
//   load_box(shared, i, map, place, barriers, b)   by one thread: a box, rows of 128 bytes in the pattern of
//                                      matrix_descriptor.h, to i on. Lands at any time until the phase of b is over
//                                      that expects its bytes
//   fence_async()                      what this thread wrote, or its copy_async brought, is seen by products and
//   copies
//                                      by tensor map that a barrier orders after this
//
//   Products [64, n] += [64, 16] [16, n] of a warpgroup, T Bf16 or Fp16, all four warps together (matrix_descriptor.h):
//     matrix_address(shared, i)        for descriptors
//     multiply_shared<T, n>(d, a, b, adds)      a and b by describe_rows
//     multiply_registers<T, n>(d, a, b, adds)   a in registers, b by describe_columns
//     begin_products()                 before the first of a group: registers that it reads or adds to are in place
//     commit_products() wait_products<n>()      closes a group; waits until at most n of this warp's groups are in
//     flight.
//                                      Until then nobody touches the registers of a product or overwrites what it reads
//     hold(d)                          keeps the compiler from moving sums across this place
//     settle(x)                        and this the wait for products to before x, never negative, is computed; a
//                                      barrier of the warp
#pragma once

#include "machine.h"

#if defined(LLM_DECODER_HOST_MACHINE)
#include "machine_hopper_host.h"
#else
#include "machine_hopper_cuda.h"
#endif
