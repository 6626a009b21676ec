// What all kernels share. No header is included, so that NVRTC needs none on the user's machine.
//
// Macros set per variant:
//   STORAGE   0 float, 1 half, 2 bfloat16, 3 double: the element type of inputs and outputs
//   WIDTH     neighbouring neurons per thread, read and written as one vector
//   SHIFT     1 if a constant current is added at every step
//   SIGNED    1 if negative spikes may take back spikes sent before
//   COUNT     1 to count the spikes of every step
// State is float, or double with double storage. All sizes and indices are 64 bit.

typedef long long Index;
typedef unsigned long long Tally;  // spikes of a step
typedef unsigned int Partial;      // spikes of a step within a block

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

#if STORAGE == 3
typedef double State;
#else
typedef float State;
#endif
#if STORAGE == 0
typedef float Storage;
#elif STORAGE == 1
typedef Half Storage;
#elif STORAGE == 2
typedef BFloat16 Storage;
#else
typedef double Storage;
#endif

union Word { unsigned int bits; float value; };

__device__ inline State infinity() {
    Word word;
    word.bits = 0x7f800000u;
    return word.value;
}

__device__ inline float load(float x) { return x; }
__device__ inline double load(double x) { return x; }

__device__ inline float load(BFloat16 x) {
    Word word;
    word.bits = (unsigned int)x.bits << 16;
    return word.value;
}

__device__ inline void store(float* target, float x) { *target = x; }
__device__ inline void store(double* target, double x) { *target = x; }

__device__ inline void store(BFloat16* target, float x) {
    Word word;
    word.value = x;
    // Round to nearest, ties to even; NaN stays NaN.
    unsigned int rounded = (word.bits + 0x7fffu + ((word.bits >> 16) & 1u)) >> 16;
    target->bits = (unsigned short)(x == x ? rounded : 0x7fffu);
}

#ifdef HOST_SHIM  // a host compiler's own half type; see tests/backends
__device__ inline float load(Half x) { return half_to_float(x.bits); }
__device__ inline void store(Half* target, float x) { target->bits = float_to_half(x); }
#else
__device__ inline float load(Half x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
}
__device__ inline void store(Half* target, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(target->bits) : "f"(x));
}
#endif

// WIDTH elements in one memory transaction of at most 16 bytes.
template <typename T>
struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Pack { T item[WIDTH]; };

template <typename T>
__device__ inline Pack<T> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T>*>(source);
}

#ifndef HOST_SHIM
// Not a plain assignment: the slow path of a division branches between the elements of a pack, and
// the compiler would then store each of them by itself.
__device__ inline void store_16_bytes(unsigned int* target, const unsigned int* word) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(target), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
}
#endif

template <typename T>
__device__ inline void store_pack(T* target, const Pack<T>& pack) {
    if constexpr (sizeof(Pack<T>) % 16 == 0) {
        union { Pack<T> pack; unsigned int word[sizeof(Pack<T>) / 4]; } as = {pack};
#pragma unroll
        for (int i = 0; i < sizeof(Pack<T>) / 4; i += 4) {
            store_16_bytes(reinterpret_cast<unsigned int*>(target) + i, as.word + i);
        }
    } else {
        *reinterpret_cast<Pack<T>*>(target) = pack;
    }
}

// a / b for a ≥ 0 < b; 32-bit division takes a fraction of the time of a 64-bit one.
__device__ inline Index quotient(Index a, Index b) {
    return (a | b) >> 32 ? a / b : (Index)((unsigned int)a / (unsigned int)b);
}

__device__ inline Index remainder_of(Index a, Index b) { return a - quotient(a, b) * b; }

// A parameter that holds `count` values, each shared by `inner` neighbouring neurons, over and over:
// a scalar has count 1; channels of [N, C, H, W] have inner H·W, of [N, H, W, C] inner 1.
struct Parameter {
    const State* values;
    Index inner, count;

    __device__ State at(Index neuron) const {
        if (inner == 1 && neuron < count) return values[neuron];
        if (count == 1) return values[0];
        return values[remainder_of(quotient(neuron, inner), count)];
    }

    // The values of WIDTH neighbouring neurons, the first of which is a multiple of WIDTH.
    __device__ void of_pack(Index first, State (&found)[WIDTH]) const {
        const bool shared = inner % WIDTH == 0 || count == 1;
        found[0] = at(first);
#pragma unroll
        for (int j = 1; j < WIDTH; ++j) found[j] = shared ? found[0] : at(first + j);
    }
};

struct Neuron {
    State v, sent, theta, shift;
};

// One time step; the operations and their order are those of functional.burst_step.
__device__ inline State step(Neuron& neuron, State z, State most, State* membrane, State* count) {
    State m = neuron.v + z;
#if SHIFT
    m = m + neuron.shift;
#endif
    State n = floor(m / neuron.theta);
    const State least = SIGNED ? -most : (State)0;
    // Comparisons, not fmin and fmax: a NaN must stay a NaN.
    n = n < least ? least : n;
    n = n > most ? most : n;
#if SIGNED
    n = n < -neuron.sent ? -neuron.sent : n;
    neuron.sent = neuron.sent + n;
#endif
    const State y = neuron.theta * n;
    neuron.v = m - y;
    *membrane = m;
    *count = n;
    return y;
}

#if COUNT
// Spikes of every step, summed over a block in shared memory before they reach global memory.
extern __shared__ Partial block_tally[];

__device__ inline void clear_tally(Index steps) {
    for (Index t = threadIdx.x; t < steps; t += blockDim.x) block_tally[t] = 0;
    __syncthreads();
}

// Every thread of a warp has to call this, idle ones with 0.
__device__ inline void add_to_tally(Index t, Partial spikes) {
    for (int offset = 16; offset > 0; offset /= 2) {
        spikes += __shfl_down_sync(0xffffffffu, spikes, offset);
    }
    if (threadIdx.x % 32 == 0) atomicAdd(block_tally + t, spikes);
}

__device__ inline void flush_tally(Index steps, Tally* counts) {
    __syncthreads();
    for (Index t = threadIdx.x; t < steps; t += blockDim.x) {
        if (block_tally[t]) atomicAdd(counts + t, (Tally)block_tally[t]);
    }
}
#endif
