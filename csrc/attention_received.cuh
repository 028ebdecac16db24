// attention_received.cuh: the softmax attention that each key gets, mean over heads. Row rules for all
// devices, and the CUDA kernels.
//
//   q [B, H, Q, D]; k [B, Hkv, N, D]; mask [B, N] or null, of the queries too where Q == N
//   scores [B, N]: mean over heads, and over the chosen queries, of softmax(scale q . k) over the existing keys
// A block of the GPU owns some keys of a kv head and the CPU a kv head, so the drivers are apart; they share which
// queries are chosen. The GPU's kernels: attention_received_row.cuh for one query, attention_received_all.cuh.
#pragma once
#include "portable.h"

namespace budgetprune {

enum class QueryRows { last, cls, all };  // FastV; PruMerge and VisionZip; towers without CLS

constexpr i32 keys_per_block = 64;  // of the GPU kernel for one query

struct ReceivedShape {
  i64 batch, heads, kv_heads, queries, keys, d;
  i64 q_strides[3], k_strides[3];  // of batch, head and token, in elements; channels are neighbours
  BP_FN i32 splits() const { return i32((keys + keys_per_block - 1) / keys_per_block); }
};

// Whether query i exists: padding is known where queries and keys are the same tokens.
BP_FN bool query_exists(const bool* mask, i64 i, i64 queries, i64 keys) {
  return !mask || queries != keys || mask[i];
}

// The queries to look at, [first, end): one for `last` and `cls`. `last` without any existing query: none.
BP_FN void chosen_queries(QueryRows rows, const bool* mask, i64 queries, i64 keys, i64& first, i64& end) {
  first = 0;
  end = rows == QueryRows::all ? queries : 1;
  if (rows != QueryRows::last) return;
  end = queries;
  while (end > 0 && !query_exists(mask, end - 1, queries, keys)) --end;
  first = end > 0 ? end - 1 : 0;
}

}  // namespace budgetprune
