// gated_attention.cuh: attention whose keys carry a gate. Row rules for all devices, and the CUDA kernels.
//
//   A_ij = g_j exp(s_ij) / sum_k g_k exp(s_ik),  s_ij = scale q_i . k_j      DynamicViT (Rao et al. 2021), eq. 11
//   q, o, do [B, H, Q, D]; k, v [B, Hkv, N, D]; gate [B, N] float (double for double); mask [B, N] or null
//   lse [B, H, Q] = log sum_k g_k exp(s_ik); -infinity where a row sees no kept key
// The CPU multiplies tiles and the GPU gives each row a warp, so the drivers are apart; they share what
// a gate means, what a query sees and how a gate's derivative is bounded.
#pragma once
#include "portable.h"

namespace budgetprune {

// What a gate's gradient weighs dO_i . (v_j - o_i) with. A kept key: the derivative A_ij / g_j, with 1 / g_j at most
// exp(cap). A dropped one: the secant to a gate of 1, y / (1 + y) with y = exp(min(s_ij - lse_i, cap)), exactly the
// change of o_i if key j were let in. The derivative at 0, y itself, has no bound: a dropped key that outweighs all
// kept ones would take over the gradient of its whole batch.
constexpr float gate_exponent_cap = 30.0f;
constexpr double gate_weight_cap = 10686474581524.463;  // exp(30)

// A gate of 0 or below drops the key; NaN does not, so that it is seen.
template <typename A>
BP_FN bool gate_keeps(A gate) {
  return !(gate <= A(0));
}

template <typename A>
BP_FN A inverse_gate(A gate) {
  const A inverse = A(1) / gate;
  return inverse > A(gate_weight_cap) ? A(gate_weight_cap) : inverse;
}

// How many leading keys query i sees: causal masks are aligned at the bottom right.
BP_FN i64 keys_seen(i64 i, i64 queries, i64 keys, bool causal) {
  const i64 seen = i + keys - queries + 1;
  return !causal || seen > keys ? keys : seen < 0 ? 0 : seen;
}

#ifdef __CUDACC__
template <typename A>
__device__ A warp_sum(A x) {
  for (i32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
template <typename A>
__device__ A warp_max(A x) {
  for (i32 step = 16; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x ? other : x;
  }
  return x;
}
template <typename A, typename T>
__device__ A dot_row(const A* a, const T* b, i64 d) {
  A sum = 0;
  for (i64 c = 0; c < d; ++c) sum += a[c] * A(b[c]);
  return sum;
}

// One warp per query row: online softmax over 32 keys at a time, a key per lane; a channel per lane for the
// sum over values. Shared memory: 2 d numbers per warp.
template <typename T>
__global__ void gated_attention_kernel(const T* q, const T* k, const T* v, const typename Accumulate<T>::type* gate,
                                       const bool* mask, i64 batch, i64 heads, i64 kv_heads, i64 queries, i64 keys,
                                       i64 d, bool causal, double scale, T* out,
                                       typename Accumulate<T>::type* lse) {
  using A = typename Accumulate<T>::type;
  BP_DYNAMIC_SHARED(shared_bytes);
  const i32 lane = threadIdx.x % 32;
  const i64 row = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= batch * heads * queries) return;
  A* query = reinterpret_cast<A*>(shared_bytes) + (threadIdx.x / 32) * 2 * d;
  A* sum = query + d;
  const i64 b = row / (heads * queries), h = row / queries % heads;
  const i64 kv = (b * kv_heads + h / (heads / kv_heads)) * keys;
  for (i64 c = lane; c < d; c += 32) {
    query[c] = A(q[row * d + c]) * A(scale);
    sum[c] = 0;
  }
  __syncwarp();
  const A nothing = -A(1) / A(0);
  A best = nothing, total = 0;
  bool any = false;
  const i64 seen = keys_seen(row % queries, queries, keys, causal);
  for (i64 base = 0; base < seen; base += 32) {
    const i64 j = base + lane;
    const bool kept = j < seen && (!mask || mask[b * keys + j]) && gate_keeps(gate[b * keys + j]);
    const u32 ballot = __ballot_sync(0xffffffffu, kept);
    if (ballot == 0) continue;
    any = true;
    const A s = kept ? dot_row(query, k + (kv + j) * d, d) + log(gate[b * keys + j]) : nothing;
    const A top = warp_max(s), next = top > best ? top : best;
    const A shift = next == nothing ? A(0) : next;  // no finite score yet
    const A p = kept ? exp(s - shift) : A(0), shrink = exp(best - shift);
    total = total * shrink + warp_sum(p);
    best = next;
    for (i64 c = lane; c < d; c += 32) sum[c] *= shrink;
    for (i32 l = 0; l < 32; ++l) {
      const A weight = __shfl_sync(0xffffffffu, p, l);
      if (ballot >> l & 1u)
        for (i64 c = lane; c < d; c += 32) sum[c] += weight * A(v[(kv + base + l) * d + c]);
    }
  }
  for (i64 c = lane; c < d; c += 32) out[row * d + c] = T(any ? sum[c] / total : A(0));
  if (lane == 0) lse[row] = !any ? nothing : total > A(0) ? best + log(total) : A(0) / A(0);
}

// The probabilities of one pair again: p = A_ij, and weight, what the gate's gradient takes, see above.
template <typename A>
__device__ void pair_weights(A s, A lse, A gate, A& p, A& weight) {
  const bool kept = gate_keeps(gate);
  const A x = kept ? s + log(gate) - lse : s - lse;
  const A y = exp(x > A(gate_exponent_cap) ? A(gate_exponent_cap) : x);
  p = kept ? y : A(0);
  weight = kept ? y * inverse_gate(gate) : y / (A(1) + y);
}

// One warp per query row: dq, and delta = do . o for the kernel below. Shared memory: 3 d numbers per warp.
template <typename T>
__global__ void gated_attention_dq_kernel(const T* grad, const T* q, const T* k, const T* v,
                                          const typename Accumulate<T>::type* gate, const bool* mask, const T* out,
                                          const typename Accumulate<T>::type* lse, i64 batch, i64 heads, i64 kv_heads,
                                          i64 queries, i64 keys, i64 d, bool causal, double scale, T* dq,
                                          typename Accumulate<T>::type* delta) {
  using A = typename Accumulate<T>::type;
  BP_DYNAMIC_SHARED(shared_bytes);
  const i32 lane = threadIdx.x % 32;
  const i64 row = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= batch * heads * queries) return;
  A* query = reinterpret_cast<A*>(shared_bytes) + (threadIdx.x / 32) * 3 * d;
  A *upstream = query + d, *sum = upstream + d;
  const i64 b = row / (heads * queries), h = row / queries % heads;
  const i64 kv = (b * kv_heads + h / (heads / kv_heads)) * keys;
  A own = 0;
  for (i64 c = lane; c < d; c += 32) {
    query[c] = A(q[row * d + c]) * A(scale);
    upstream[c] = A(grad[row * d + c]);
    own += upstream[c] * A(out[row * d + c]);
    sum[c] = 0;
  }
  own = warp_sum(own);
  __syncwarp();
  const A row_lse = lse[row];
  const i64 seen = row_lse == -A(1) / A(0) ? 0 : keys_seen(row % queries, queries, keys, causal);
  for (i64 base = 0; base < seen; base += 32) {
    const i64 j = base + lane;
    const bool kept = j < seen && (!mask || mask[b * keys + j]) && gate_keeps(gate[b * keys + j]);
    const u32 ballot = __ballot_sync(0xffffffffu, kept);
    A ds = 0;
    if (kept) {
      A p, weight;
      pair_weights(dot_row(query, k + (kv + j) * d, d), row_lse, gate[b * keys + j], p, weight);
      ds = p * (dot_row(upstream, v + (kv + j) * d, d) - own) * A(scale);
    }
    for (i32 l = 0; l < 32; ++l) {
      const A factor = __shfl_sync(0xffffffffu, ds, l);
      if (ballot >> l & 1u)
        for (i64 c = lane; c < d; c += 32) sum[c] += factor * A(k[(kv + base + l) * d + c]);
    }
  }
  for (i64 c = lane; c < d; c += 32) dq[row * d + c] = T(sum[c]);
  if (lane == 0) delta[row] = own;
}

// One warp per key of a kv head, a query per lane: dk, dv, and this kv head's part of dgate [B, Hkv, N].
// Every sum has one owner and one order: no atomics. Shared memory: 4 d numbers per warp.
template <typename T>
__global__ void gated_attention_dkv_kernel(const T* grad, const T* q, const T* k, const T* v,
                                           const typename Accumulate<T>::type* gate, const bool* mask,
                                           const typename Accumulate<T>::type* lse,
                                           const typename Accumulate<T>::type* delta, i64 batch, i64 heads,
                                           i64 kv_heads, i64 queries, i64 keys, i64 d, bool causal, double scale, T* dk,
                                           T* dv, typename Accumulate<T>::type* dgate_parts) {
  using A = typename Accumulate<T>::type;
  BP_DYNAMIC_SHARED(shared_bytes);
  const i32 lane = threadIdx.x % 32;
  const i64 row = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= batch * kv_heads * keys) return;
  A* key = reinterpret_cast<A*>(shared_bytes) + (threadIdx.x / 32) * 4 * d;
  A *value = key + d, *dkey = value + d, *dvalue = dkey + d;
  for (i64 c = lane; c < d; c += 32) {
    key[c] = A(k[row * d + c]) * A(scale);
    value[c] = A(v[row * d + c]);
    dkey[c] = dvalue[c] = 0;
  }
  __syncwarp();
  const i64 b = row / (kv_heads * keys), j = row % keys, group = heads / kv_heads;
  const i64 first_head = row / keys % kv_heads * group;
  const bool exists = !mask || mask[b * keys + j];
  const A g = gate[b * keys + j];
  const i64 first = !causal || j < keys - queries ? 0 : j - (keys - queries);  // the first query that sees key j
  A dgate = 0;
  for (i64 h = first_head; exists && h < first_head + group; ++h) {
    const i64 rows = (b * heads + h) * queries;
    for (i64 base = first; base < queries; base += 32) {
      const i64 i = rows + base + lane;
      const bool sees = base + lane < queries && lse[i] != -A(1) / A(0);
      const u32 ballot = __ballot_sync(0xffffffffu, sees);
      A p = 0, ds = 0;
      if (sees) {
        A weight;
        pair_weights(dot_row(key, q + i * d, d), lse[i], g, p, weight);
        const A slope = dot_row(value, grad + i * d, d) - delta[i];
        dgate += weight * slope;
        ds = p * slope * A(scale);
      }
      if (!gate_keeps(g)) continue;
      for (i32 l = 0; l < 32; ++l) {
        const A factor = __shfl_sync(0xffffffffu, ds, l), weight = __shfl_sync(0xffffffffu, p, l);
        if (ballot >> l & 1u)
          for (i64 c = lane; c < d; c += 32) {
            dkey[c] += factor * A(q[(rows + base + l) * d + c]);
            dvalue[c] += weight * A(grad[(rows + base + l) * d + c]);
          }
      }
    }
  }
  for (i64 c = lane; c < d; c += 32) {
    dk[row * d + c] = T(dkey[c]);
    dv[row * d + c] = T(dvalue[c]);
  }
  dgate = warp_sum(dgate);
  if (lane == 0) dgate_parts[row] = dgate;
}

// dgate[b, j] = sum over kv heads, in their order.
template <typename A>
__global__ void gate_sum_kernel(const A* parts, i64 batch, i64 kv_heads, i64 keys, A* dgate) {
  const i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= batch * keys) return;
  A sum = 0;
  for (i64 h = 0; h < kv_heads; ++h) sum += parts[(at / keys * kv_heads + h) * keys + at % keys];
  dgate[at] = sum;
}
#endif

}  // namespace budgetprune
