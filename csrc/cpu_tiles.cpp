// cpu_tiles.cpp: the inner loops of cpu_tiles.h, written once over the bytes of a vector register and
// compiled for 16 (any CPU), 32 (AVX2 with FMA) and 64 (AVX-512); the CPU's own features choose at load time.
#pragma GCC optimize("fp-contract=fast")
#pragma GCC diagnostic ignored "-Wpsabi"  // wide vectors are passed between inlined functions only
#include "cpu_tiles.h"

#define BP_INLINE inline __attribute__((always_inline))

namespace budgetprune {
namespace {

template <typename A, int Bytes>
struct Register {
  typedef A Vector __attribute__((vector_size(Bytes), may_alias));
  typedef i32 Bits __attribute__((vector_size(Bytes)));
  static constexpr i64 lanes = Bytes / i64(sizeof(A));
};
template <typename A, int Bytes>
using Vector = typename Register<A, Bytes>::Vector;

// All lanes of x into one, halving: a chain over 16 lanes would cost more than the rest of a short row.
template <typename A, int Bytes, typename Op>
BP_INLINE A reduce(Vector<A, Bytes> x, Op op) {
  if constexpr (Bytes > 16) {
    Vector<A, Bytes / 2> half[2];
    std::memcpy(half, &x, Bytes);
    return reduce<A, Bytes / 2>(op(half[0], half[1]), op);
  } else if constexpr (Register<A, Bytes>::lanes == 4) {
    return op(op(x[0], x[1]), op(x[2], x[3]));
  } else {
    return op(x[0], x[1]);
  }
}
constexpr auto plus = [](auto a, auto b) __attribute__((always_inline)) { return a + b; };
constexpr auto larger = [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; };

// M rows by two registers of columns.
template <typename A, int Bytes, int M>
BP_INLINE void matmul_tile(const A* a, i64 am, i64 ak, const A* b, i64 k_end, A* c, i64 ldc, bool add) {
  constexpr i64 lanes = Register<A, Bytes>::lanes, width = Tile<A>::width;
  Vector<A, Bytes> sum[M][2] = {};
  for (i64 k = 0; k < k_end; ++k, b += width) {
    const auto b0 = *reinterpret_cast<const Vector<A, Bytes>*>(b);
    const auto b1 = *reinterpret_cast<const Vector<A, Bytes>*>(b + lanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const A x = a[m * am + k * ak];
      sum[m][0] += x * b0;
      sum[m][1] += x * b1;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    auto row = reinterpret_cast<Vector<A, Bytes>*>(c + m * ldc);
    row[0] = add ? row[0] + sum[m][0] : sum[m][0];
    row[1] = add ? row[1] + sum[m][1] : sum[m][1];
  }
}

template <typename A, int Bytes>
BP_INLINE void matmul_panels(const A* a, i64 am, i64 ak, const A* panels, i64 depth, A* c, i64 ldc, i64 rows,
                             i64 columns, i64 k_end, bool add) {
  for (i64 n = 0; n < columns; n += Tile<A>::width)
    for (i64 part = 0; part < Tile<A>::width; part += 2 * Register<A, Bytes>::lanes) {
      const A* b = panels + n * depth + part;
      A* out = c + n + part;
      i64 m = 0;
      for (; m + 6 <= rows; m += 6) matmul_tile<A, Bytes, 6>(a + m * am, am, ak, b, k_end, out + m * ldc, ldc, add);
      for (; m + 2 <= rows; m += 2) matmul_tile<A, Bytes, 2>(a + m * am, am, ak, b, k_end, out + m * ldc, ldc, add);
      if (m < rows) matmul_tile<A, Bytes, 1>(a + m * am, am, ak, b, k_end, out + m * ldc, ldc, add);
    }
}

// Within 2 ulp for x <= 88. Below -87.3 exactly 0, so exp(-infinity) is 0; NaN stays NaN.
template <int Bytes>
BP_INLINE Vector<float, Bytes> exp_of(Vector<float, Bytes> x, float) {
  using V = Vector<float, Bytes>;
  using Bits = typename Register<float, Bytes>::Bits;
  constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
  const V zero = {};
  const V inside = x < -87.3f ? zero : x;
  const V shifted = inside * 1.44269504f + shifter;
  const V n = shifted - shifter;
  const V r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  V y = r * 1.9875691500e-4f + 1.3981999507e-3f;                  // polynomial of Cephes' expf
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const Bits power = ((Bits)shifted << 23) + 0x3f800000;
  return x < -87.3f ? zero : y * (V)power;
}

template <int Bytes>
BP_INLINE Vector<double, Bytes> exp_of(Vector<double, Bytes> x, double) {
  for (int l = 0; l < Register<double, Bytes>::lanes; ++l) x[l] = std::exp(x[l]);
  return x;
}

template <typename A, int Bytes>
BP_INLINE A softmax_of(A* s, const A* bias, i64 n, i64 padded) {
  using V = Vector<A, Bytes>;
  constexpr i64 lanes = Register<A, Bytes>::lanes;
  if (n == 0) {
    for (i64 j = 0; j < padded; ++j) s[j] = 0;
    return minus_infinity<A>;
  }
  const auto x = reinterpret_cast<V*>(s);
  const auto b = reinterpret_cast<const V*>(bias);
  const i64 vectors = padded / lanes;
  for (i64 v = 0; v < vectors; ++v) x[v] += b[v];
  for (i64 j = n; j < padded; ++j) s[j] = minus_infinity<A>;  // after the bias: a key not seen may hold NaN there
  V best = V{} + minus_infinity<A>;
  for (i64 v = 0; v < vectors; ++v) best = x[v] > best ? x[v] : best;
  A top = reduce<A, Bytes>(best, larger);
  if (top == minus_infinity<A>) top = 0;  // all NaN or -infinity: 0 / 0 below turns the row into NaN
  V sums = {};
  for (i64 v = 0; v < vectors; ++v) {
    x[v] = exp_of<Bytes>(x[v] - top, A{});
    sums += x[v];
  }
  const A sum = reduce<A, Bytes>(sums, plus);
  const A inverse = 1 / sum;
  for (i64 v = 0; v < vectors; ++v) x[v] *= inverse;
  return sum > 0 ? top + std::log(sum) : std::numeric_limits<A>::quiet_NaN();
}

template <typename A, int Bytes>
BP_INLINE void slopes_of(const SlopeRow<A>& row, A lse, A delta, A cap, i64 n, i64 padded) {
  using V = Vector<A, Bytes>;
  const auto x = reinterpret_cast<V*>(row.s), slope = reinterpret_cast<V*>(row.slope);
  const auto dgate = reinterpret_cast<V*>(row.dgate);
  const auto bias = reinterpret_cast<const V*>(row.bias), inverse = reinterpret_cast<const V*>(row.inverse);
  const auto present = reinterpret_cast<const V*>(row.present);
  const V zero = {};
  for (i64 v = 0; v < padded / Register<A, Bytes>::lanes; ++v) x[v] += bias[v];
  for (i64 j = n; j < padded; ++j) row.s[j] = minus_infinity<A>;  // after the bias, as above
  for (i64 v = 0; v < padded / Register<A, Bytes>::lanes; ++v) {
    const V exponent = x[v] - lse;
    const V y = exp_of<Bytes>(exponent > cap ? zero + cap : exponent, A{});
    const V s = y != 0 ? slope[v] - delta : zero;  // a key that is not seen may hold anything
    dgate[v] += (present[v] != 0 ? y * inverse[v] : y / (1 + y)) * s;
    x[v] = present[v] != 0 ? y : zero;
    slope[v] = present[v] != 0 ? y * s : zero;
  }
}

// a . b over d numbers: whole registers, then halves of them, so that D = 24 has no loop over single numbers.
template <typename A, int Bytes>
BP_INLINE A dot_of(const A* a, const A* b, i64 d) {
  typedef A V __attribute__((vector_size(Bytes), aligned(sizeof(A)), may_alias));
  constexpr i64 lanes = Register<A, Bytes>::lanes;
  if (d >= lanes) {
    Vector<A, Bytes> sum[4] = {};
    i64 c = 0;
    for (; c + 4 * lanes <= d; c += 4 * lanes)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u)
        sum[u] += *reinterpret_cast<const V*>(a + c + u * lanes) * *reinterpret_cast<const V*>(b + c + u * lanes);
    for (; c + lanes <= d; c += lanes)
      sum[0] += *reinterpret_cast<const V*>(a + c) * *reinterpret_cast<const V*>(b + c);
    const A whole = reduce<A, Bytes>((sum[0] + sum[1]) + (sum[2] + sum[3]), plus);
    if (c == d) return whole;
    if constexpr (Bytes > 16) return whole + dot_of<A, Bytes / 2>(a + c, b + c, d - c);
    A rest = whole;
    for (; c < d; ++c) rest += a[c] * b[c];
    return rest;
  }
  if constexpr (Bytes > 16) return dot_of<A, Bytes / 2>(a, b, d);
  A rest = 0;
  for (i64 c = 0; c < d; ++c) rest += a[c] * b[c];
  return rest;
}

template <typename A, int Bytes>
BP_INLINE void dots_of(const A* query, const A* const* rows, i64 count, i64 d, A* s) {
  for (i64 r = 0; r < count; ++r) s[r] = dot_of<A, Bytes>(query, rows[r], d);
}

template <typename A>
struct Routines {
  void (*matmul)(const A*, i64, i64, const A*, i64, A*, i64, i64, i64, i64, bool);
  A (*softmax_row)(A*, const A*, i64, i64);
  void (*slope_row)(const SlopeRow<A>&, A, A, A, i64, i64);
  void (*dot_rows)(const A*, const A* const*, i64, i64, A*);
};

// The same functions under each target; a target cannot be a template argument, so a macro names it.
#define BP_ROUTINES(NAME, BYTES, TARGET)                                                                             \
  template <typename A>                                                                                              \
  TARGET void matmul_##NAME(const A* a, i64 am, i64 ak, const A* b, i64 depth, A* c, i64 ldc, i64 rows, i64 columns, \
                            i64 k_end, bool add) {                                                                   \
    matmul_panels<A, BYTES>(a, am, ak, b, depth, c, ldc, rows, columns, k_end, add);                                 \
  }                                                                                                                  \
  template <typename A>                                                                                              \
  TARGET A softmax_row_##NAME(A* s, const A* bias, i64 n, i64 padded) {                                              \
    return softmax_of<A, BYTES>(s, bias, n, padded);                                                                 \
  }                                                                                                                  \
  template <typename A>                                                                                              \
  TARGET void slope_row_##NAME(const SlopeRow<A>& row, A lse, A delta, A cap, i64 n, i64 padded) {                   \
    slopes_of<A, BYTES>(row, lse, delta, cap, n, padded);                                                            \
  }                                                                                                                  \
  template <typename A>                                                                                              \
  TARGET void dot_rows_##NAME(const A* query, const A* const* rows, i64 count, i64 d, A* s) {                        \
    dots_of<A, BYTES>(query, rows, count, d, s);                                                                     \
  }                                                                                                                  \
  template <typename A>                                                                                              \
  constexpr Routines<A> routines_##NAME = {matmul_##NAME<A>, softmax_row_##NAME<A>, slope_row_##NAME<A>,             \
                                           dot_rows_##NAME<A>};

BP_ROUTINES(any, 16, )
#if defined(__x86_64__) && defined(__GNUC__)
BP_ROUTINES(avx2, 32, __attribute__((target("avx2,fma"))))
BP_ROUTINES(avx512, 64, __attribute__((target("avx512f,avx512dq,avx512vl,fma"))))
#endif

template <typename A>
Routines<A> choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  // Features are asked for, not a CPU's name: target_clones("arch=...") would pass over other makers' CPUs.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return routines_avx512<A>;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return routines_avx2<A>;
#endif
  return routines_any<A>;
}
template <typename A>
const Routines<A> routines = choose<A>();

}  // namespace

void matmul(const float* a, i64 am, i64 ak, const float* panels, i64 depth, float* c, i64 ldc, i64 rows, i64 columns,
            i64 k_end, bool add) {
  routines<float>.matmul(a, am, ak, panels, depth, c, ldc, rows, columns, k_end, add);
}
void matmul(const double* a, i64 am, i64 ak, const double* panels, i64 depth, double* c, i64 ldc, i64 rows,
            i64 columns, i64 k_end, bool add) {
  routines<double>.matmul(a, am, ak, panels, depth, c, ldc, rows, columns, k_end, add);
}
float softmax_row(float* s, const float* bias, i64 n, i64 padded) {
  return routines<float>.softmax_row(s, bias, n, padded);
}
double softmax_row(double* s, const double* bias, i64 n, i64 padded) {
  return routines<double>.softmax_row(s, bias, n, padded);
}
void slope_row(const SlopeRow<float>& row, float lse, float delta, float cap, i64 n, i64 padded) {
  routines<float>.slope_row(row, lse, delta, cap, n, padded);
}
void slope_row(const SlopeRow<double>& row, double lse, double delta, double cap, i64 n, i64 padded) {
  routines<double>.slope_row(row, lse, delta, cap, n, padded);
}

void dot_rows(const float* query, const float* const* rows, i64 count, i64 d, float* s) {
  routines<float>.dot_rows(query, rows, count, d, s);
}
void dot_rows(const double* query, const double* const* rows, i64 count, i64 d, double* s) {
  routines<double>.dot_rows(query, rows, count, d, s);
}

}  // namespace budgetprune
