// T steps of lateral-inhibition pooling. One thread takes WIDTH neighbouring outputs through all time
// steps, with the totals of their windows in registers.
//
// Further macros:
//   WIDTH               neighbouring outputs per thread, of one pixel: 1, or a divisor of `inner`
//   KERNEL_H, KERNEL_W  size of a window, of at most 32 inputs
//
// x is [steps, outer, height, width, inner]: outer = N·C and inner = 1 for contiguous images,
// outer = N and inner = C for channels-last ones.

#define TAPS (KERNEL_H * KERNEL_W)
#define TOTALS (TAPS * WIDTH * (STORAGE == 3 ? 2 : 1))  // registers
#if TOTALS <= 20
#define BOUNDS __launch_bounds__(256, 4)  // at most 64 registers, so that loads hide behind loads
#else
#define BOUNDS __launch_bounds__(256, 1)
#endif

typedef unsigned int Mask;  // a bit for every input of a window

__device__ inline State infinity() {
    Word word;
    word.bits = 0x7f800000u;
    return word.value;
}

// Whether some window above (to the left of) this one covers the same input row (column).
__device__ inline bool covered_before(Index out, int tap, int taps, int stride, int dilation) {
    for (int later = tap + 1; later < taps; ++later) {
        const int distance = (later - tap) * dilation;
        if (distance % stride == 0 && distance / stride <= out) return true;
    }
    return false;
}

// Whether any window covers this input row (column).
__device__ inline bool covered(
    Index position, int taps, Index outs, Index stride, Index padding, Index dilation
) {
    for (int tap = 0; tap < taps; ++tap) {
        const Index start = position + padding - tap * dilation;
        if (start >= 0 && remainder_of(start, stride) == 0 && quotient(start, stride) < outs) return true;
    }
    return false;
}

// `x_stride` elements from one step of x to the next, 0 for an input that is the same at every step;
// `size` inputs and `outs` outputs a step; `gaps` tells whether some input belongs to no window.
extern "C" __global__ void BOUNDS li_pool(
    const Storage* __restrict__ x, Index x_stride, Index steps, Index size, Index outs, Index inner,
    Index height, Index width, Index out_height, Index out_width,
    Index stride_h, Index stride_w, Index padding_h, Index padding_w,
    Index dilation_h, Index dilation_w, Index gaps,
    const State* __restrict__ total, const State* __restrict__ pooled,
    Storage* __restrict__ out, State* __restrict__ total_out, State* __restrict__ pooled_out
) {
    const Index thread = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    const Index stride = (Index)gridDim.x * blockDim.x;
    // From an input of a window to the next; a window spans less than 2^31 elements.
    const int down = (int)(dilation_h * width * inner), right = (int)(dilation_w * inner);

    for (Index o = thread * WIDTH; o < outs; o += stride * WIDTH) {
        const Index pixel = quotient(o, inner), line = quotient(pixel, out_width);
        const Index column = pixel - line * out_width;
        const Index plane = quotient(line, out_height), row = line - plane * out_height;
        const Index top = row * stride_h - padding_h, left = column * stride_w - padding_w;
        // Of the first input of the window, which may lie outside.
        const Index corner = ((plane * height + top) * width + left) * inner + (o - pixel * inner);

        Mask inside = 0, first = 0;
        Pack<State> sum[TAPS];
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            const int tap_h = tap / KERNEL_W, tap_w = tap % KERNEL_W;
            const Index h = top + tap_h * dilation_h, w = left + tap_w * dilation_w;
            if (h < 0 || h >= height || w < 0 || w >= width) continue;
            inside |= (Mask)1 << tap;
            // An input of several windows belongs to the first.
            if (!covered_before(row, tap_h, KERNEL_H, stride_h, dilation_h) &&
                !covered_before(column, tap_w, KERNEL_W, stride_w, dilation_w)) first |= (Mask)1 << tap;
            sum[tap] = load_pack(total + corner + tap_h * down + tap_w * right);
        }

        Pack<State> before = load_pack(pooled + o);
        const Storage* now = x + corner;
        Storage* to = out + o;
#pragma unroll 1
        for (Index t = 0; t < steps; ++t, now += x_stride, to += outs) {
            Pack<State> best;
            for (int j = 0; j < WIDTH; ++j) best.item[j] = -infinity();
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap) {
                if (!(inside >> tap & 1)) continue;
                const int tap_h = tap / KERNEL_W, tap_w = tap % KERNEL_W;
                const Pack<Storage> in = load_pack(now + tap_h * down + tap_w * right);
                for (int j = 0; j < WIDTH; ++j) {
                    const State q = sum[tap].item[j] + load(in.item[j]);
                    sum[tap].item[j] = q;
                    // A NaN wins, as in torch.
                    if (q > best.item[j] || q != q) best.item[j] = q;
                }
            }
            Pack<Storage> sent;
            for (int j = 0; j < WIDTH; ++j) store(&sent.item[j], best.item[j] - before.item[j]);
            store_pack(to, sent);
            before = best;
        }

        store_pack(pooled_out + o, before);
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            if (!(first >> tap & 1)) continue;
            store_pack(total_out + corner + tap / KERNEL_W * down + tap % KERNEL_W * right, sum[tap]);
        }
    }

    // Inputs that no window covers have a total as well.
    for (Index i = thread; gaps && i < size; i += stride) {
        const Index pixel = quotient(i, inner), line = quotient(pixel, width);
        const Index w = pixel - line * width, h = remainder_of(line, height);
        if (covered(h, KERNEL_H, out_height, stride_h, padding_h, dilation_h) &&
            covered(w, KERNEL_W, out_width, stride_w, padding_w, dilation_w)) continue;
        State sum = total[i];
#pragma unroll 1
        for (Index t = 0; t < steps; ++t) sum = sum + load(x[t * x_stride + i]);
        total_out[i] = sum;
    }
}
