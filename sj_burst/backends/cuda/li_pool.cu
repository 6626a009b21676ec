// T steps of lateral-inhibition pooling. One thread takes one output through all time steps, with the
// totals of its window in registers.
//
// Further macros:
//   KERNEL_H, KERNEL_W  size of a window (a large one spills from registers: slower, still right)
//
// x is [steps, outer, height, width, inner]: outer = N·C and inner = 1 for contiguous images,
// outer = N and inner = C for channels-last ones.

#define TAPS (KERNEL_H * KERNEL_W)
#define UNROLLED (TAPS <= 64 ? TAPS : 1)

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
// `gaps` tells whether some input belongs to no window.
extern "C" __global__ void li_pool(
    const Storage* __restrict__ x, Index x_stride, Index steps, Index outer, Index inner,
    Index height, Index width, Index out_height, Index out_width,
    Index stride_h, Index stride_w, Index padding_h, Index padding_w,
    Index dilation_h, Index dilation_w, Index gaps,
    const State* __restrict__ total, const State* __restrict__ pooled,
    Storage* __restrict__ out, State* __restrict__ total_out, State* __restrict__ pooled_out
) {
    const Index size = outer * height * width * inner;
    const Index outs = outer * out_height * out_width * inner;
    const Index thread = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    const Index stride = (Index)gridDim.x * blockDim.x;

    for (Index o = thread; o < outs; o += stride) {
        const Index pixel = quotient(o, inner), line = quotient(pixel, out_width);
        const Index k = o - pixel * inner, column = pixel - line * out_width;
        const Index plane = quotient(line, out_height), row = line - plane * out_height;

        Index where[TAPS];
        bool inside[TAPS];
        State sum[TAPS];
#pragma unroll UNROLLED
        for (int tap = 0; tap < TAPS; ++tap) {
            const int tap_h = tap / KERNEL_W, tap_w = tap % KERNEL_W;
            const Index h = row * stride_h - padding_h + tap_h * dilation_h;
            const Index w = column * stride_w - padding_w + tap_w * dilation_w;
            inside[tap] = 0 <= h && h < height && 0 <= w && w < width;
            if (!inside[tap]) continue;
            where[tap] = ((plane * height + h) * width + w) * inner + k;
            sum[tap] = total[where[tap]];
        }

        State before = pooled[o];
        for (Index t = 0; t < steps; ++t) {
            State best = -infinity();
#pragma unroll UNROLLED
            for (int tap = 0; tap < TAPS; ++tap) {
                if (!inside[tap]) continue;
                sum[tap] = sum[tap] + load(x[t * x_stride + where[tap]]);
                // A NaN wins, as in torch.
                if (sum[tap] > best || sum[tap] != sum[tap]) best = sum[tap];
            }
            store(&out[t * outs + o], best - before);
            before = best;
        }

        pooled_out[o] = before;
#pragma unroll UNROLLED
        for (int tap = 0; tap < TAPS; ++tap) {
            if (!inside[tap]) continue;
            // An input of several windows belongs to the first.
            const bool first = !covered_before(row, tap / KERNEL_W, KERNEL_H, stride_h, dilation_h) &&
                               !covered_before(column, tap % KERNEL_W, KERNEL_W, stride_w, dilation_w);
            if (first) total_out[where[tap]] = sum[tap];
        }
    }

    // Inputs that no window covers have a total as well.
    for (Index i = thread; gaps && i < size; i += stride) {
        const Index pixel = quotient(i, inner), line = quotient(pixel, width);
        const Index w = pixel - line * width, h = remainder_of(line, height);
        if (covered(h, KERNEL_H, out_height, stride_h, padding_h, dilation_h) &&
            covered(w, KERNEL_W, out_width, stride_w, padding_w, dilation_w)) continue;
        State sum = total[i];
        for (Index t = 0; t < steps; ++t) sum = sum + load(x[t * x_stride + i]);
        total_out[i] = sum;
    }
}
