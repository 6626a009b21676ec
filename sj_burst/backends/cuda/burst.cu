// T steps of the burst neuron, and their surrogate gradient. One thread takes WIDTH neighbouring
// neurons through all time steps with their state in registers.
//
// Further macros:
//   SAVE       1 to keep the membrane potential before the spikes of every step, for the gradient
//   SURROGATE  0 Sigmoid, 1 ATan

#ifndef SURROGATE
// z, y: [steps, neurons]; `z_stride` elements from one step of z to the next, 0 for an input that is
// the same at every step. `neurons` is a multiple of WIDTH.
extern "C" __global__ void burst_forward(
    const Storage* __restrict__ z, Index z_stride, Index steps, Index neurons, double most,
    const State* __restrict__ v, Index v_inner, Index v_count,
    const State* __restrict__ theta, Index theta_inner, Index theta_count,
    const State* __restrict__ shift, Index shift_inner, Index shift_count,
    const State* __restrict__ sent,
    Storage* __restrict__ y, State* __restrict__ v_out, State* __restrict__ sent_out,
    Tally* __restrict__ counts, State* __restrict__ membrane
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
            v_of.of_pack(first, start);
            theta_of.of_pack(first, threshold);
#if SHIFT
            shift_of.of_pack(first, current);
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
            }
            in = load_pack(z + first);
        }
        for (Index t = 0; t < steps; ++t) {
            Partial spikes = 0;
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
                    spikes += (Partial)(n < 0 ? -n : n);
                }
                in = next;
                store_pack(y + t * neurons + first, out);
#if SAVE
                store_pack(membrane + t * neurons + first, before);
#endif
            }
#if COUNT
            add_to_tally(t, spikes);
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
        }
    }
#if COUNT
    flush_tally(steps, counts);
#endif
}

#else

// Derivative of the surrogate of a Heaviside step at 0.
__device__ inline State surrogate(State x, State alpha) {
#if SURROGATE == 0
    const State s = 1 / (1 + exp(-alpha * x));
    return (1 - s) * s * alpha;
#else
    const State scaled = (State)1.5707963267948966 * alpha * x;
    return alpha / 2 / (1 + scaled * scaled);
#endif
}

// Back-propagation through time of the same neurons, from the last step to the first. The gradient
// with respect to the shift is the sum of grad_z over time.
extern "C" __global__ void burst_backward(
    const Storage* __restrict__ grad_y, const State* __restrict__ grad_v,
    const State* __restrict__ grad_sent, const State* __restrict__ membrane,
    const Storage* __restrict__ y, const State* __restrict__ sent_out,
    const State* __restrict__ theta, Index theta_inner, Index theta_count,
    Index steps, Index neurons, double most, double alpha,
    Storage* __restrict__ grad_z, State* __restrict__ grad_v_init,
    State* __restrict__ grad_sent_init, State* __restrict__ grad_theta
) {
    const Parameter theta_of = {theta, theta_inner, theta_count};
    const State least = SIGNED ? -(State)most : (State)0;
    const Index stride = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < neurons; i += stride) {
        const State threshold = theta_of.at(i);
        State dv = grad_v[i], dtheta = 0;
#if SIGNED
        State dsent = grad_sent[i], sent = sent_out[i];
#endif
        for (Index t = steps - 1; t >= 0; --t) {
            const State m = membrane[t * neurons + i];
            const State level = m / threshold;
            // Not y/θ rounded down: y may have lost digits in storage.
            const State n = rint(load(y[t * neurons + i]) / threshold);
            const State dy = load(grad_y[t * neurons + i]) - dv;
            State dn = threshold * dy;
            dtheta += n * dy;
#if SIGNED
            // y = θ·max(n, −sent): where the bound holds, the gradient goes to what was sent.
            dn += dsent;
            sent -= n;
            State wanted = floor(level);
            wanted = wanted < least ? least : (wanted > (State)most ? (State)most : wanted);
            if (wanted < -sent) {
                dsent -= dn;
                dn = 0;
            }
#endif
            State slope = 0;
            for (State k = least + 1; k <= (State)most; k += 1) slope += surrogate(level - k, alpha);
            const State dlevel = dn * slope;
            dtheta -= dlevel * level / threshold;
            dv += dlevel / threshold;
            store(&grad_z[t * neurons + i], dv);
        }
        grad_v_init[i] = dv;
        grad_theta[i] = dtheta;
#if SIGNED
        grad_sent_init[i] = dsent;
#endif
    }
}
#endif
