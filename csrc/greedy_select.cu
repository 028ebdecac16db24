// greedy_select.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "greedy_select_dpp.cuh"
#include "launch.h"

namespace budgetprune {

// What a block holds beside its static shared memory, within what every GPU since sm_80 grants to one block.
static constexpr i64 most_shared_bytes = 80 * 1024;

// Whether the rows of c are so many and so long that a launch per token, a few microseconds, is less than what one
// multiprocessor needs to read them, some hundred bytes a nanosecond. Where it is false kmax is below dpp_stage.
static bool in_turns(i32 n, i32 kmax, bool dpp) { return dpp && n >= 1024 && i64(n) * kmax > (i64(1) << 18); }

// Bytes of global memory per sample for what does not fit in shared memory.
i64 greedy_select_scratch(i32 n, i32 kmax, bool dpp, i64 item) {
  const i64 state = (dpp ? 2 : 1) * i64(n) * item;
  return in_turns(n, kmax, dpp) || state > most_shared_bytes ? state : 0;
}
// Bytes per sample that one launch leaves to the next, see DppTurns; 0: all is one launch.
i64 greedy_select_turns(i32 n, i32 kmax, bool dpp, i64 item) {
  return in_turns(n, kmax, dpp) ? 2 * ((i64(n) + dpp_tile - 1) / dpp_tile * (item + 4) + 4) : 0;
}

template <typename T>
static void launch_turns(const T* similarity, const T* relevance, const i32* keep, i32 samples, i32 n, i32 kmax,
                         void* turn_bytes, typename KeyOf<T>::Float* factor, typename KeyOf<T>::Float* scratch,
                         i32* kept, cudaStream_t stream) {
  using Key = typename KeyOf<T>::Key;
  const i32 tiles = (n + dpp_tile - 1) / dpp_tile;
  const i64 all = 2 * i64(samples) * tiles;
  Key* const keys = static_cast<Key*>(turn_bytes);
  i32* const at = reinterpret_cast<i32*>(keys + all);
  const DppTurns<Key> turns{keys, at, at + all, samples, tiles};
  const u32 blocks = u32(samples) * u32(tiles);
  launch(dpp_begin_kernel<T>, blocks, dpp_tile, 0, stream, similarity, relevance, n, scratch, turns);
  for (i32 t = 0; t < kmax; ++t)
    launch(dpp_step_kernel<T>, blocks, dpp_tile, 0, stream, similarity, relevance, keep, n, kmax, t, factor, scratch,
           turns);
  launch(dpp_end_kernel<T>, u32(samples), 256, 0, stream, scratch, keep, n, kmax, kept);
}

static u32 block_of(i32 threads) { return threads > 1024 ? 1024 : u32(threads + 31) / 32 * 32; }

template <typename T>
static void launch_typed(const void* similarity, const void* relevance, const i32* keep, i64 samples, i32 n, i32 kmax,
                         bool dpp, void* nearest, void* factor, void* scratch, void* turns, i32* kept,
                         cudaStream_t stream) {
  using F = typename KeyOf<T>::Float;
  using Key = typename KeyOf<T>::Key;
  const T* const s = static_cast<const T*>(similarity);
  const size_t shared = scratch ? 0 : (dpp ? 2 : 1) * size_t(n) * sizeof(F);
  if (turns)
    return launch_turns(s, static_cast<const T*>(relevance), keep, i32(samples), n, kmax, turns,
                        static_cast<F*>(factor), static_cast<F*>(scratch), kept, stream);
  if (dpp)  // many loads a step: a thread per column
    return launch(dpp_kernel<T>, u32(samples), block_of(n), shared, stream, s, static_cast<const T*>(relevance), keep,
                  n, kmax, static_cast<F*>(factor), static_cast<F*>(scratch), kept);
  // The first token asks for the whole matrix, which is work for the whole GPU; the loop is a chain within one block.
  const i64 tiles = (i64(n) + 31) / 32;
  launch(nearest_token_kernel<T>, u32(samples * tiles), 256, 0, stream, s, n, tiles, static_cast<Key*>(nearest));
  launch(max_min_kernel<T>, u32(samples), block_of((n + 3) / 4), shared, stream, s, static_cast<const Key*>(nearest),
         keep, n, kmax, static_cast<Key*>(scratch), kept);
}

int launch_greedy_select(DType dtype, const void* similarity, const void* relevance, const i32* keep, i64 samples,
                         i32 n, i32 kmax, bool dpp, void* nearest, void* factor, void* scratch, void* turns, i32* kept,
                         void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const auto run = dtype == DType::f64 ? launch_typed<double> : launch_typed<float>;
  run(similarity, relevance, keep, samples, n, kmax, dpp, nearest, factor, scratch, turns, kept, on);
  return cudaGetLastError();
}

}  // namespace budgetprune
