// T steps of lateral-inhibition pooling, alone or fused with the burst neuron before it. One thread
// takes one output through all time steps, with the totals (and neurons) of its window in registers.
//
// Further macros:
//   FUSED               1 to run the input through burst neurons first
//   KERNEL_H, KERNEL_W  size of a window (a large one spills from registers: slower, still right)
//
// x is [steps, outer, height, width, inner]: outer = N·C and inner = 1 for contiguous images,
// outer = N and inner = C for channels-last ones.

#define TAPS (KERNEL_H * KERNEL_W)
#define UNROLLED (TAPS <= 64 ? TAPS : 1)

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

struct Source {
    const Storage* x;
    Index x_stride, size;  // elements from step to step (0 for a constant input), and of one step
    State most;
    Parameter v, theta, shift;
    const State* sent;

    __device__ Neuron neuron(Index i) const {
        Neuron neuron = {};
#if FUSED
        neuron.v = v.at(i);
        neuron.theta = theta.at(i);
#if SHIFT
        neuron.shift = shift.at(i);
#endif
#if SIGNED
        neuron.sent = sent[i];
#endif
#endif
        return neuron;
    }

    // What the pooling receives from input i at step t.
    __device__ State next(Neuron& neuron, Index i, Index t, Partial* spikes) const {
        const State in = load(x[t * x_stride + i]);
#if FUSED
        State m, n;
        const State y = step(neuron, in, most, &m, &n);
        *spikes += (Partial)(n < 0 ? -n : n);
        // What the separate neuron would have written.
        Storage stored;
        store(&stored, y);
        return load(stored);
#else
        return in;
#endif
    }
};

extern "C" __global__ void li_pool_forward(
    const Storage* __restrict__ x, Index x_stride, Index steps, Index outer, Index inner,
    Index height, Index width, Index out_height, Index out_width,
    Index stride_h, Index stride_w, Index padding_h, Index padding_w,
    Index dilation_h, Index dilation_w, Index gaps,
    const State* __restrict__ total, const State* __restrict__ pooled,
    double most,
    const State* __restrict__ v, Index v_inner, Index v_count,
    const State* __restrict__ theta, Index theta_inner, Index theta_count,
    const State* __restrict__ shift, Index shift_inner, Index shift_count,
    const State* __restrict__ sent,
    Storage* __restrict__ out, State* __restrict__ total_out, State* __restrict__ pooled_out,
    State* __restrict__ v_out, State* __restrict__ sent_out, Tally* __restrict__ counts
) {
    const Index size = outer * height * width * inner;
    const Index outs = outer * out_height * out_width * inner;
    const Source source = {
        x, x_stride, size, (State)most, {v, v_inner, v_count}, {theta, theta_inner, theta_count},
        {shift, shift_inner, shift_count}, sent,
    };
    const Index stride = (Index)gridDim.x * blockDim.x;
#if COUNT
    clear_tally(steps);
#endif
    for (Index base = (Index)blockIdx.x * blockDim.x; base < outs; base += stride) {
        const Index o = base + threadIdx.x;
        const bool active = o < outs;
        const Index pixel = quotient(o, inner), line = quotient(pixel, out_width);
        const Index k = o - pixel * inner, column = pixel - line * out_width;
        const Index plane = quotient(line, out_height), row = line - plane * out_height;

        Index where[TAPS];
        bool inside[TAPS], owned[TAPS];  // an input of several windows belongs to the first
        State sum[TAPS];
        Neuron neuron[TAPS];
#pragma unroll UNROLLED
        for (int tap = 0; tap < TAPS; ++tap) {
            const int tap_h = tap / KERNEL_W, tap_w = tap % KERNEL_W;
            const Index h = row * stride_h - padding_h + tap_h * dilation_h;
            const Index w = column * stride_w - padding_w + tap_w * dilation_w;
            inside[tap] = active && 0 <= h && h < height && 0 <= w && w < width;
            if (!inside[tap]) continue;
            where[tap] = ((plane * height + h) * width + w) * inner + k;
            owned[tap] = !covered_before(row, tap_h, KERNEL_H, stride_h, dilation_h) &&
                         !covered_before(column, tap_w, KERNEL_W, stride_w, dilation_w);
            sum[tap] = total[where[tap]];
            neuron[tap] = source.neuron(where[tap]);
        }
        State before = active ? pooled[o] : (State)0;

        for (Index t = 0; t < steps; ++t) {
            Partial spikes = 0;
            State best = -infinity();
#pragma unroll UNROLLED
            for (int tap = 0; tap < TAPS; ++tap) {
                if (!inside[tap]) continue;
                Partial fired = 0;
                sum[tap] = sum[tap] + source.next(neuron[tap], where[tap], t, &fired);
                if (owned[tap]) spikes += fired;
                // A NaN wins, as in torch.
                if (sum[tap] > best || sum[tap] != sum[tap]) best = sum[tap];
            }
            if (active) {
                store(&out[t * outs + o], best - before);
                before = best;
            }
#if COUNT
            add_to_tally(t, spikes);
#endif
        }

        if (active) pooled_out[o] = before;
#pragma unroll UNROLLED
        for (int tap = 0; tap < TAPS; ++tap) {
            if (!inside[tap] || !owned[tap]) continue;
            total_out[where[tap]] = sum[tap];
#if FUSED
            v_out[where[tap]] = neuron[tap].v;
#if SIGNED
            sent_out[where[tap]] = neuron[tap].sent;
#endif
#endif
        }
    }

    // Inputs that no window covers have state as well.
    for (Index base = (Index)blockIdx.x * blockDim.x; gaps && base < size; base += stride) {
        const Index i = base + threadIdx.x;
        const Index pixel = quotient(i, inner), line = quotient(pixel, width);
        const Index w = pixel - line * width, h = remainder_of(line, height);
        const bool active = i < size && !(
            covered(h, KERNEL_H, out_height, stride_h, padding_h, dilation_h) &&
            covered(w, KERNEL_W, out_width, stride_w, padding_w, dilation_w));
        State sum = active ? total[i] : (State)0;
        Neuron neuron = active ? source.neuron(i) : Neuron();
        for (Index t = 0; t < steps; ++t) {
            Partial spikes = 0;
            if (active) sum = sum + source.next(neuron, i, t, &spikes);
#if COUNT
            add_to_tally(t, spikes);
#endif
        }
        if (!active) continue;
        total_out[i] = sum;
#if FUSED
        v_out[i] = neuron.v;
#if SIGNED
        sent_out[i] = neuron.sent;
#endif
#endif
    }
#if COUNT
    flush_tally(steps, counts);
#endif
}
