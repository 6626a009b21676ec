// T steps of the burst neuron. One thread takes WIDTH neighbouring neurons through all time steps with
// their state in registers.
//
// Further macros:
//   WIDTH     neighbouring neurons per thread, read and written as one vector
//   SHIFT     1 if a constant current is added at every step
//   SIGNED    1 if negative spikes may take back spikes sent before
//   LEAKY     1 if the total of spikes may be negative, and weighs `slope` there; wants SIGNED
//   COUNT     1 to count the spikes of every step, and the events of every neuron
//   SAVE      1 to keep the membrane potential before the spikes of every step, for the gradient

typedef unsigned long long Tally;  // spikes of a step
typedef unsigned int Partial;      // spikes of a step within a block

// The values of a parameter at WIDTH neighbouring neurons, the first of which is a multiple of WIDTH.
__device__ inline void spread(const Parameter& parameter, Index first, State (&found)[WIDTH]) {
    const bool shared = parameter.inner % WIDTH == 0 || parameter.count == 1;
    found[0] = parameter.at(first);
#pragma unroll
    for (int j = 1; j < WIDTH; ++j) found[j] = shared ? found[0] : parameter.at(first + j);
}

struct Neuron {
    State v, sent, theta, shift;
#if LEAKY
    State below;  // what a unit of the total weighs below zero
#endif
#if COUNT
    State fired[3];  // events of all steps, by each accounting
#endif
};

#if LEAKY
__device__ inline State positive(State x) { return x < 0 ? 0 : x; }  // NaN stays NaN
#endif

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
#if LEAKY
    const State before = positive(neuron.sent);
    neuron.sent = neuron.sent + n;
    const State above = positive(neuron.sent) - before;
    const State y = neuron.theta * above + neuron.below * (n - above);
    neuron.v = m - neuron.theta * n;
#else
#if SIGNED
    n = n < -neuron.sent ? -neuron.sent : n;
    neuron.sent = neuron.sent + n;
#endif
    const State y = neuron.theta * n;
    neuron.v = m - y;
#endif
    *membrane = m;
    *count = n;
    return y;
}

#if COUNT
// Spikes of every step, and after them those of every step that are negative, summed over a block in
// shared memory before they reach global memory.
extern __shared__ Partial block_tally[];

__device__ inline void clear_tally(Index steps) {
    for (Index t = threadIdx.x; t < 2 * steps; t += blockDim.x) block_tally[t] = 0;
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
    for (Index t = threadIdx.x; t < 2 * steps; t += blockDim.x) {
        if (block_tally[t]) atomicAdd(counts + t, (Tally)block_tally[t]);
    }
}
#endif

// z, y: [steps, neurons]; `z_stride` elements from one step of z to the next, 0 for an input that is
// the same at every step. `neurons` is a multiple of WIDTH.
extern "C" __global__ void burst_forward(
    const Storage* __restrict__ z, Index z_stride, Index steps, Index neurons, double most,
    const State* __restrict__ v, Index v_inner, Index v_count,
    const State* __restrict__ theta, Index theta_inner, Index theta_count,
    const State* __restrict__ shift, Index shift_inner, Index shift_count,
    const State* __restrict__ slope, Index slope_inner, Index slope_count,
    const State* __restrict__ sent,
    Storage* __restrict__ y, State* __restrict__ v_out, State* __restrict__ sent_out,
    Tally* __restrict__ counts, State* __restrict__ fired, State* __restrict__ membrane
) {
    const Parameter v_of = {v, v_inner, v_count};
    const Parameter theta_of = {theta, theta_inner, theta_count};
    const Parameter shift_of = {shift, shift_inner, shift_count};
#if COUNT
    clear_tally(steps);
#endif
    const Index stride = (Index)gridDim.x * blockDim.x * WIDTH;
    // The bound is the same for a whole block: warps stay complete while they count.
    for (Index base = (Index)blockIdx.x * blockDim.x * WIDTH; base < neurons; base += stride) {
        const Index first = base + (Index)threadIdx.x * WIDTH;
        const bool active = first < neurons;
        Neuron neuron[WIDTH];
        Pack<Storage> in = {};
        if (active) {
            State start[WIDTH], threshold[WIDTH], current[WIDTH];
            spread(v_of, first, start);
            spread(theta_of, first, threshold);
#if SHIFT
            spread(shift_of, first, current);
#endif
#if LEAKY
            State below[WIDTH];
            spread({slope, slope_inner, slope_count}, first, below);
#endif
            for (int j = 0; j < WIDTH; ++j) {
                neuron[j].v = start[j];
                neuron[j].theta = threshold[j];
#if SHIFT
                neuron[j].shift = current[j];
#endif
#if SIGNED
                neuron[j].sent = sent[first + j];
#endif
#if LEAKY
                neuron[j].below = below[j] * threshold[j];
#endif
#if COUNT
                for (int k = 0; k < 3; ++k) neuron[j].fired[k] = 0;
#endif
            }
            in = load_pack(z + first);
        }
        for (Index t = 0; t < steps; ++t) {
            Partial spikes = 0, back = 0;
            if (active) {
                // The next input is under way while this one is computed.
                const bool same = z_stride == 0 || t + 1 == steps;
                const Pack<Storage> next = same ? in : load_pack(z + (t + 1) * z_stride + first);
                Pack<Storage> out;
                Pack<State> before;
                for (int j = 0; j < WIDTH; ++j) {
                    State n;
                    store(&out.item[j], step(neuron[j], load(in.item[j]), (State)most,
                                             &before.item[j], &n));
                    const Partial size = (Partial)(n < 0 ? -n : n);
                    spikes += size;
                    back += n < 0 ? size : 0;
#if COUNT
                    neuron[j].fired[0] += (State)size;
                    neuron[j].fired[1] += (State)__popc(size);
                    neuron[j].fired[2] += (State)(size > 0);
#endif
                }
                in = next;
                store_pack(y + t * neurons + first, out);
#if SAVE
                store_pack(membrane + t * neurons + first, before);
#endif
            }
#if COUNT
            add_to_tally(t, spikes);
#if SIGNED
            add_to_tally(steps + t, back);
#endif
#endif
        }
        if (active) {
            Pack<State> last, total;
            for (int j = 0; j < WIDTH; ++j) {
                last.item[j] = neuron[j].v;
                total.item[j] = neuron[j].sent;
            }
            store_pack(v_out + first, last);
#if SIGNED
            store_pack(sent_out + first, total);
#endif
#if COUNT
            for (int k = 0; k < 3; ++k) {
                for (int j = 0; j < WIDTH; ++j) total.item[j] = neuron[j].fired[k];
                store_pack(fired + k * neurons + first, total);
            }
#endif
        }
    }
#if COUNT
    flush_tally(steps, counts);
#endif
}
