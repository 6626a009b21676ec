// What all kernels share. No header is included, so that NVRTC needs none on the user's machine.
//
// Macros:
//   STORAGE   0 float, 1 half, 2 bfloat16, 3 double: the element type of inputs and outputs
//   WIDTH     neighbouring elements per thread, read and written as one vector, where a kernel has packs
// State is float, or double with double storage. All sizes and indices are 64 bit.

typedef long long Index;

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
};

#ifdef WIDTH
// WIDTH elements in one memory transaction of at most 16 bytes.
template <typename T>
struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Pack { T item[WIDTH]; };

template <typename T>
__device__ inline Pack<T> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T>*>(source);
}

#ifndef HOST_SHIM
// Not plain assignments: code that branches between the elements of a pack would make the compiler
// store each of them by itself.
__device__ inline void store_16_bytes(unsigned int* target, const unsigned int* word) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(target), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
}

__device__ inline void store_8_bytes(unsigned int* target, const unsigned int* word) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" :: "l"(target), "r"(word[0]), "r"(word[1]));
}
#endif

template <typename T>
__device__ inline void store_pack(T* target, const Pack<T>& pack) {
    if constexpr (sizeof(Pack<T>) % 8 == 0) {
        union { Pack<T> pack; unsigned int word[sizeof(Pack<T>) / 4]; } as = {pack};
        unsigned int* to = reinterpret_cast<unsigned int*>(target);
        if constexpr (sizeof(Pack<T>) == 8) {
            store_8_bytes(to, as.word);
        } else {
#pragma unroll
            for (int i = 0; i < sizeof(Pack<T>) / 4; i += 4) store_16_bytes(to + i, as.word + i);
        }
    } else {
        *reinterpret_cast<Pack<T>*>(target) = pack;
    }
}
#endif
