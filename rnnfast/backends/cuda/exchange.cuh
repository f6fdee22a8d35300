// What blocks of a cluster (compute capability 9.0 on) tell one another: numbers that are stored in
// each other's shared memory, and counted where they arrive. PTX ISA 8.1: st.async, mbarrier, mapa.
//
// An emulation of the device has its own (tests/cuda_emulation.cpp).
#pragma once
#include "numbers.cuh"

namespace rnnfast {

// Counts the bytes that arrive in this block's memory; has a phase for each lot of them.
typedef unsigned long long Mailbox;

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900

RNNFAST_DEVICE unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}

// The same place in the memory of another block.
RNNFAST_DEVICE unsigned address_in(unsigned block, unsigned address) {
  unsigned found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(address), "r"(block));
  return found;
}

RNNFAST_DEVICE void open_mailbox(Mailbox* box) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(box)) : "memory");
}

// All threads of all blocks have come here, and what they wrote before, mailboxes too, is there.
RNNFAST_DEVICE void meet_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// By one thread, once for each phase, after the phase before.
RNNFAST_DEVICE void expect_bytes(Mailbox* box, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)),
               "r"(bytes)
               : "memory");
}

// Until all bytes of a phase are there; phases are 0 and 1 in turns.
RNNFAST_DEVICE void await_bytes(Mailbox* box, unsigned phase) {
  unsigned done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(box)), "r"(phase)
        : "memory");
  } while (!done);
}

// Numbers go to the same place in a block's memory, and their bytes into the same mailbox of it.
RNNFAST_DEVICE void send(unsigned block, float* to, Mailbox* box, const float (&x)[1]) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          address_in(block, shared_address(to))),
      "r"(__float_as_uint(x[0])), "r"(address_in(block, shared_address(box)))
      : "memory");
}
RNNFAST_DEVICE void send(unsigned block, float* to, Mailbox* box, const float (&x)[4]) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address_in(block, shared_address(to))),
      "r"(__float_as_uint(x[0])), "r"(__float_as_uint(x[1])), "r"(__float_as_uint(x[2])),
      "r"(__float_as_uint(x[3])), "r"(address_in(block, shared_address(box)))
      : "memory");
}

// A number of global memory on its way to shared memory, which its own thread alone reads.
RNNFAST_DEVICE void fetch(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
// What was fetched since the last time is a lot.
RNNFAST_DEVICE void end_of_lot() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All lots but the last kLots are there.
template <int kLots>
RNNFAST_DEVICE void await_lots_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLots) : "memory");
}

#elif !defined(__CUDACC__)  // whoever compiles this for a CPU has them

void open_mailbox(Mailbox* box);
void meet_cluster();
void expect_bytes(Mailbox* box, unsigned bytes);
void await_bytes(Mailbox* box, unsigned phase);
template <int kCount>
void send(unsigned block, float* to, Mailbox* box, const float (&x)[kCount]);
void fetch(float* to, const float* from);
void end_of_lot();
template <int kLots>
void await_lots_but();

#endif

}  // namespace rnnfast
