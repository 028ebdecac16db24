// gated_attention_cpu.h: the CPU loops of gated_attention. A thread takes a tile of 24 query rows against all
// keys at a time: its scratch is O(24 N + N D), and nothing of size [B, H, Q, N] exists.
#pragma once
#include <algorithm>

#include "cpu_tiles.h"
#include "gated_attention.cuh"
#include "torch_support.h"

namespace budgetprune {

struct AttentionShape {
  i64 batch, heads, kv_heads, queries, keys, d;
};

constexpr i64 tile_rows = 24;

// A [B, H, N, D] tensor whose rows are contiguous; the other strides are free.
template <typename T>
struct Heads {
  const T* start;
  i64 batch_stride, head_stride, row_stride;
  explicit Heads(const Tensor& t)
      : start(data<T>(t)), batch_stride(t.stride(0)), head_stride(t.stride(1)), row_stride(t.stride(2)) {}
  const T* row(i64 b, i64 h, i64 n) const { return start + b * batch_stride + h * head_stride + n * row_stride; }
};

// The keys of one sample that exist (and, for the forward, are kept), in order.
template <typename A>
struct Columns {
  std::vector<i64> position;
  A *bias, *present;  // log gate, 0 where dropped; 1 kept, 0 dropped
  A* inverse;         // of a kept key: d A_ij / d g_j = weight times this
  i64 count = 0;

  Columns(Scratch<A>& scratch, i64 keys)
      : position(keys), bias(scratch.take(Tile<A>::padded(keys))), present(scratch.take(Tile<A>::padded(keys))),
        inverse(scratch.take(Tile<A>::padded(keys))) {}
  void read(const A* gate, const bool* mask, i64 keys, bool kept_only) {
    count = 0;
    for (i64 j = 0; j < keys; ++j) {
      const bool kept = gate_keeps(gate[j]);
      if ((mask && !mask[j]) || (kept_only && !kept)) continue;
      position[count] = j;
      bias[count] = kept && gate[j] != A(1) ? std::log(gate[j]) : A(0);
      present[count] = kept ? A(1) : A(0);
      inverse[count++] = kept ? inverse_gate(gate[j]) : A(1);
    }
    for (i64 j = count; j < Tile<A>::padded(keys); ++j) bias[j] = 0;
  }
  i64 seen(i64 keys_seen) const {  // how many columns stand before position `keys_seen`
    i64 low = 0, high = count;
    while (low < high) {
      const i64 middle = (low + high) / 2;
      if (position[middle] < keys_seen) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

template <typename T, typename A>
void load_rows(const T* row, i64 d, A factor, A* to) {
  for (i64 c = 0; c < d; ++c) to[c] = A(row[c]) * factor;
}

// Columns of a head as right-hand matrices: across [D, count] and, if asked, down [count, D].
template <typename T, typename A>
void pack(const Heads<T>& x, i64 b, i64 h, const Columns<A>& columns, i64 d, A* across, A* down) {
  constexpr i64 w = Tile<A>::width;
  for (i64 j = 0; j < columns.count; ++j) {
    const T* row = x.row(b, h, columns.position[j]);
    if (across)
      for (i64 c = 0; c < d; ++c) across[j / w * d * w + c * w + j % w] = A(row[c]);
    if (down)  // a dropped key takes no part in sums over rows, whatever it holds
      for (i64 c = 0; c < d; ++c) panel_at(down, columns.count, j, c) = columns.present[j] != 0 ? A(row[c]) : A(0);
  }
  if (across)  // columns beyond the last are computed too, then cleared: they must be finite
    for (i64 j = columns.count; j < Tile<A>::padded(columns.count); ++j)
      for (i64 c = 0; c < d; ++c) across[j / w * d * w + c * w + j % w] = 0;
}

template <typename T>
void gated_attention_forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& gate,
                             const bool* mask, const AttentionShape& n, bool causal, double scale, const Tensor& out,
                             const Tensor& lse) {
  using A = typename Accumulate<T>::type;
  const Heads<T> q(q_in), k(k_in), v(v_in);
  const A* gates = data<A>(gate);
  T* out_rows = mutable_data<T>(out);
  A* lse_rows = mutable_data<A>(lse);
  const i64 group = n.heads / n.kv_heads, d_padded = Tile<A>::padded(n.d), n_padded = Tile<A>::padded(n.keys);
  // A unit is one kv head with all its query heads, or a single query head where there are few of those.
  const i64 split = n.batch * n.kv_heads < 4 * i64(torch::stable::get_num_threads()) ? group : 1;
  torch::stable::parallel_for(0, n.batch * n.kv_heads * split, 1, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(n_padded * (2 * n.d + 3 + tile_rows) + d_padded * (n.keys + tile_rows) + tile_rows * n.d, 8);
    Columns<A> columns(scratch, n.keys);
    A* keys = scratch.take(n.d * n_padded);
    A* values = scratch.take(n.keys * d_padded);
    A* queries = scratch.take(tile_rows * n.d);
    A* p = scratch.take(tile_rows * n_padded);
    A* o = scratch.take(tile_rows * d_padded);
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 b = unit / (n.kv_heads * split), kv = unit / split % n.kv_heads;
      const i64 first = kv * group + unit % split * (group / split);
      columns.read(gates + b * n.keys, mask ? mask + b * n.keys : nullptr, n.keys, true);
      pack(k, b, kv, columns, n.d, keys, static_cast<A*>(nullptr));
      pack(v, b, kv, columns, n.d, static_cast<A*>(nullptr), values);
      for (i64 h = first; h < first + group / split; ++h)
        for (i64 i = 0; i < n.queries; i += tile_rows) {
          const i64 rows = std::min(tile_rows, n.queries - i), at = (b * n.heads + h) * n.queries + i;
          for (i64 r = 0; r < rows; ++r) load_rows(q.row(b, h, i + r), n.d, A(scale), queries + r * n.d);
          const i64 most = columns.seen(keys_seen(i + rows - 1, n.queries, n.keys, causal));
          const i64 width = Tile<A>::padded(most);
          matmul(queries, n.d, i64(1), keys, n.d, p, n_padded, rows, width, n.d, false);
          for (i64 r = 0; r < rows; ++r)
            lse_rows[at + r] = softmax_row(p + r * n_padded, columns.bias,
                                           columns.seen(keys_seen(i + r, n.queries, n.keys, causal)), width);
          matmul(p, n_padded, i64(1), values, columns.count, o, d_padded, rows, d_padded, most, false);
          for (i64 r = 0; r < rows; ++r)
            for (i64 c = 0; c < n.d; ++c) out_rows[(at + r) * n.d + c] = T(o[r * d_padded + c]);
        }
    }
  });
}

template <typename T>
void gated_attention_backward(const Tensor& grad_in, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                              const Tensor& gate, const bool* mask, const Tensor& out_in, const Tensor& lse,
                              const AttentionShape& n, bool causal, double scale, const Tensor& dq, const Tensor& dk,
                              const Tensor& dv, const Tensor& dgate_parts) {
  using A = typename Accumulate<T>::type;
  const Heads<T> grad(grad_in), q(q_in), k(k_in), v(v_in), out(out_in);
  const A *gates = data<A>(gate), *lse_rows = data<A>(lse);
  T *dq_rows = mutable_data<T>(dq), *dk_all = mutable_data<T>(dk), *dv_all = mutable_data<T>(dv);
  A* parts_all = mutable_data<A>(dgate_parts);
  const i64 group = n.heads / n.kv_heads, d_padded = Tile<A>::padded(n.d), n_padded = Tile<A>::padded(n.keys);
  torch::stable::parallel_for(0, n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(n_padded * (2 * n.d + 4 + 2 * tile_rows) + d_padded * (3 * n.keys + 3 * tile_rows) +
                       tile_rows * 2 * n.d, 14);
    Columns<A> columns(scratch, n.keys);
    A *keys = scratch.take(n.d * n_padded), *values = scratch.take(n.d * n_padded);
    A* key_rows = scratch.take(n.keys * d_padded);
    A *dkeys = scratch.take(n.keys * d_padded), *dvalues = scratch.take(n.keys * d_padded);
    A *queries = scratch.take(tile_rows * n.d), *upstream = scratch.take(tile_rows * n.d);
    A *query_panels = scratch.take(tile_rows * d_padded), *upstream_panels = scratch.take(tile_rows * d_padded);
    A *p = scratch.take(tile_rows * n_padded), *ds = scratch.take(tile_rows * n_padded);
    A *dqueries = scratch.take(tile_rows * d_padded), *dgate = scratch.take(n_padded);
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 b = unit / n.kv_heads, kv = unit % n.kv_heads;
      columns.read(gates + b * n.keys, mask ? mask + b * n.keys : nullptr, n.keys, false);
      pack(k, b, kv, columns, n.d, keys, key_rows);
      pack(v, b, kv, columns, n.d, values, static_cast<A*>(nullptr));
      std::fill(dkeys, dkeys + columns.count * d_padded, A(0));
      std::fill(dvalues, dvalues + columns.count * d_padded, A(0));
      std::fill(dgate, dgate + n_padded, A(0));
      for (i64 h = kv * group; h < (kv + 1) * group; ++h)
        for (i64 i = 0; i < n.queries; i += tile_rows) {
          const i64 rows = std::min(tile_rows, n.queries - i), at = (b * n.heads + h) * n.queries + i;
          const A* row_lse = lse_rows + at;
          A delta[tile_rows];
          for (i64 r = 0; r < rows; ++r) {
            A *query = queries + r * n.d, *up = upstream + r * n.d;
            load_rows(q.row(b, h, i + r), n.d, A(scale), query);
            load_rows(grad.row(b, h, i + r), n.d, A(1), up);
            const T* o = out.row(b, h, i + r);
            delta[r] = 0;
            for (i64 c = 0; c < n.d; ++c) {
              delta[r] += up[c] * A(o[c]);
              panel_at(query_panels, tile_rows, r, c) = query[c];
              panel_at(upstream_panels, tile_rows, r, c) = up[c];
            }
          }
          const i64 most = columns.seen(keys_seen(i + rows - 1, n.queries, n.keys, causal));
          const i64 width = Tile<A>::padded(most);
          matmul(queries, n.d, i64(1), keys, n.d, p, n_padded, rows, width, n.d, false);
          matmul(upstream, n.d, i64(1), values, n.d, ds, n_padded, rows, width, n.d, false);
          for (i64 r = 0; r < rows; ++r) {
            const bool empty = row_lse[r] == minus_infinity<A>;  // sees no kept key: no gradient
            const i64 seen = empty ? 0 : columns.seen(keys_seen(i + r, n.queries, n.keys, causal));
            slope_row(SlopeRow<A>{p + r * n_padded, ds + r * n_padded, dgate, columns.bias, columns.inverse,
                                  columns.present},
                      empty ? A(0) : row_lse[r], delta[r], A(gate_exponent_cap), seen, width);
          }
          matmul(ds, n_padded, i64(1), key_rows, columns.count, dqueries, d_padded, rows, d_padded, most, false);
          matmul(ds, i64(1), n_padded, query_panels, tile_rows, dkeys, d_padded, most, d_padded, rows, true);
          matmul(p, i64(1), n_padded, upstream_panels, tile_rows, dvalues, d_padded, most, d_padded, rows, true);
          for (i64 r = 0; r < rows; ++r)
            for (i64 c = 0; c < n.d; ++c) dq_rows[(at + r) * n.d + c] = T(dqueries[r * d_padded + c] * A(scale));
        }
      A* parts = parts_all + unit * n.keys;
      T *dk_rows = dk_all + unit * n.keys * n.d, *dv_rows = dv_all + unit * n.keys * n.d;
      for (i64 j = 0, column = 0; j < n.keys; ++j) {
        const bool exists = column < columns.count && columns.position[column] == j;
        parts[j] = exists ? dgate[column] : A(0);
        for (i64 c = 0; c < n.d; ++c) {
          dk_rows[j * n.d + c] = T(exists ? dkeys[column * d_padded + c] : A(0));
          dv_rows[j * n.d + c] = T(exists ? dvalues[column * d_padded + c] : A(0));
        }
        column += exists;
      }
    }
  });
}

}  // namespace budgetprune
