// gumbel_topk_backward.cuh: the gradient that gumbel_topk's gate hands to its logits.
//
//   race, fermi  d_i (g_i - sum_j d_j g_j / sum_j d_j) / tau, d = ds/dtheta: the derivative of the inclusion
//                probabilities under sum_i s_i = K, nu moving along (implicit function theorem)
//   softmax      p_i (g_i - sum_j p_j g_j) / tau, p the softmax of (logits + noise) / tau
// Both are weights times (g - mean); the row body is shared.
#pragma once
#include "gumbel_topk.cuh"

namespace budgetprune {

template <typename Team, typename T, typename V, typename F>
BP_FN void centered_gradient(const Team& team, const T* grad, i32 n, V tau, T* out, F weight) {
  V weighted, total;
  if constexpr (sizeof(T) == sizeof(V)) {  // the weights wait in `out`, exactly
    team.sum(n, [=](i32 i, V& a, V& b) { out[i] = b = weight(i), a = b * grad[i]; }, weighted, total);
    const V mean = total == V(0) ? V(0) : weighted / total;
    for (i32 i = team.rank(); i < n; i += team.size()) out[i] = out[i] * (grad[i] - mean) / tau;
  } else {
    team.sum(n, [=](i32 i, V& a, V& b) { b = weight(i), a = b * V(grad[i]); }, weighted, total);
    const V mean = total == V(0) ? V(0) : weighted / total;
    for (i32 i = team.rank(); i < n; i += team.size()) out[i] = T(weight(i) * (V(grad[i]) - mean) / tau);
  }
}

template <Estimator estimator, typename Team, typename T, typename V>
BP_FN void inclusion_backward(const Team& team, const GumbelTopk& op, const T* grad, const T* logits, V center,
                              V offset, T* out) {
  const V tau = V(op.tau);
  centered_gradient(team, grad, op.n, tau, out, [=](i32 i) {
    V s, d;
    inclusion<estimator>(V(logits[i]) / tau - center + offset, s, d);
    return d;
  });
}

// One row. `bits` is n words of scratch shared by the team, used by the softmax only.
template <typename Team, typename T, typename V>
BP_FN void gumbel_topk_backward_row(const Team& team, const GumbelTopk& op, const T* grad, const T* logits,
                                    const RowNoise& at, const V* stats, u32* bits, T* out) {
  const V first = stats[0], second = stats[1];
  if (op.estimator == Estimator::softmax) {
    draw_noise(team, at, op.n, op.noise, bits);
    team.sync();
    const V tau = V(op.tau);
    centered_gradient(team, grad, op.n, tau, out, [=](i32 i) {
      return exp_of((V(logits[i]) + V(as_float(bits[i])) - first) / tau) / second;
    });
  } else if (!(second - second == V(0))) {  // infinite: nothing can change; NaN: nothing is known
    const V fill = second != second ? second : V(0);
    for (i32 i = team.rank(); i < op.n; i += team.size()) out[i] = T(fill);
  } else if (op.estimator == Estimator::race) {
    inclusion_backward<Estimator::race>(team, op, grad, logits, first, second, out);
  } else {
    inclusion_backward<Estimator::fermi>(team, op, grad, logits, first, second, out);
  }
}

#ifdef __CUDACC__
template <typename T>
__global__ void __launch_bounds__(widest_block<T>, 1)
    gumbel_topk_backward_kernel(GumbelTopk op, const T* grad, const T* logits, const i64* key, bool key_per_row,
                                const typename KeyOf<T>::Float* stats, u32* scratch, T* out) {
  BP_DYNAMIC_SHARED(shared_bits);
  __shared__ i32 warp_sums[32];
  __shared__ double warp_totals[64];
  const i64 row = blockIdx.x, at = row * op.n;
  gumbel_topk_backward_row(BlockTeam{warp_sums, warp_totals}, op, grad + at, logits + at,
                           row_noise(key, key_per_row, row, op.n), stats + 2 * row,
                           scratch ? scratch + at : reinterpret_cast<u32*>(shared_bits), out + at);
}
#endif

}  // namespace budgetprune
