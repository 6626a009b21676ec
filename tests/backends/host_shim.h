// Defines CUDA's vocabulary away, so that a host compiler takes the kernel sources as they are. The
// caller runs the threads of a launch one after the other; where threads have to meet (COUNT), a block
// has one thread.
#include <cmath>
#include <cstring>

using std::exp;
using std::floor;
using std::rint;

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)
#define HOST_SHIM

struct Dimension { long long x; };
static Dimension blockIdx, threadIdx, blockDim, gridDim;

extern "C" void set_thread(long long block, long long thread, long long blocks, long long threads) {
    blockIdx.x = block;
    threadIdx.x = thread;
    gridDim.x = blocks;
    blockDim.x = threads;
}

static inline void __syncthreads() {}

static inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }

template <typename T>
static T __shfl_down_sync(unsigned int, T, int) { return 0; }

template <typename T>
static T atomicAdd(T* target, T value) {
    T old = *target;
    *target = old + value;
    return old;
}

static inline void store_16_bytes(unsigned int* target, const unsigned int* word) {
    std::memcpy(target, word, 16);
}

static inline void store_8_bytes(unsigned int* target, const unsigned int* word) {
    std::memcpy(target, word, 8);
}

static inline float half_to_float(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
}

static inline unsigned short float_to_half(float value) {
    _Float16 half = value;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
