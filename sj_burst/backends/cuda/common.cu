// What all kernels share. No header is included, so that NVRTC needs none on the user's machine.
//
// Macro:
//   STORAGE   0 float, 1 half, 2 bfloat16, 3 double: the element type of inputs and outputs
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
