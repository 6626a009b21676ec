// Surrogate gradient of T steps of the burst neuron. One thread takes one neuron.
//
// Further macros:
//   SIGNED     1 if negative spikes may take back spikes sent before
//   SURROGATE  0 Sigmoid, 1 ATan

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
