// One token's matrix-vector products and attention on a CPU, over weights as other libraries pack them,
// and what products of many rows need around them.
//
// At one row a linear layer reads each weight once and does two operations with it, so a kernel is
// as fast as memory when it issues few instructions a byte and keeps enough reads in flight. Each
// product here therefore streams its matrix once, in the order in which it lies in memory, and never
// holds a copy of it in another type. Sums are float32 (int32 for int8) and rounded to bfloat16 once.
//
// Where the compiler's target has AVX-512 with BF16 and VNNI these are used; elsewhere the loops are
// left to the compiler's own vectoriser. No library but PyTorch's stable C++ interface is needed.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__) && \
    !defined(LLMFIT_PORTABLE)
#define LLMFIT_AVX512 1
#include <immintrin.h>
#else
#define LLMFIT_AVX512 0
#endif

namespace {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;
using bf16 = uint16_t;

constexpr int64_t kGrainBytes = 64 * 1024;  // less than this a thread is not worth waking

// Prefetchers of Intel's hardware stop at the end of every 4 KiB, in a huge page too, so each stream asks
// for its own lines ahead: those that are read fast into the first-level cache, those of four bits,
// which take more arithmetic a byte, from further on. Beyond the end it does no harm. On AMD's (Zen 4)
// such requests cost up to a tenth of the rate: there each stream asks for the lines that it is about to
// load, together.
#if defined(__x86_64__)
const bool kAmd = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
#else
constexpr bool kAmd = false;
#endif
const int64_t kAhead = kAmd ? 0 : 1536, kFarAhead = kAmd ? 0 : 4096;  // bytes

inline void ask_ahead(const void* now) {
  __builtin_prefetch(static_cast<const char*>(now) + kAhead, 0, 3);
}

inline void ask_far_ahead(const void* now) {
  __builtin_prefetch(static_cast<const char*>(now) + kFarAhead, 0, 2);
}

// Calls f(begin, end) for parts of 0 ... count - 1 on all threads, until every part is done.
//
// A thread takes a share of what is left, again and again: one that starts late, or that the system
// holds up, gets less, where the others would wait for its half. The last parts are of `grain`. Of
// few grains, in which nobody is held up for long, each thread has its part at once.
template <typename F>
void share_out(int64_t count, int64_t grain, const F& f) {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || count <= 8 * threads * grain)
    return torch::stable::parallel_for(0, count, grain, f);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t begin = next.load(std::memory_order_relaxed);
    while (begin < count) {
      const int64_t left = count - begin;
      const int64_t end = begin + std::min(left, std::max(grain, left / (2 * threads)));
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      f(begin, end);
      begin = next.load(std::memory_order_relaxed);
    }
  });
}

inline float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline bf16 to_bf16(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename T>
inline const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
inline T* mutable_data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// [..., K] -> an uninitialised [..., rows] of the same type.
Tensor output_like(const Tensor& x, int64_t rows) {
  const auto sizes = x.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = rows;
  return torch::stable::new_empty(x, shape);
}

inline const bf16* bias_data(const std::optional<Tensor>& bias) {
  return bias.has_value() ? data<bf16>(*bias) : nullptr;
}

// The bias is added to the exact sum, as PyTorch and LLM.int8() do ...
inline void store(bf16* out, int64_t row, float sum, const bf16* bias) {
  out[row] = to_bf16(bias == nullptr ? sum : sum + to_float(bias[row]));
}

// ... or to the rounded one, as the four-bit layers of bitsandbytes and GPTQModel do.
inline void add_after_rounding(bf16* out, int64_t begin, int64_t count, const bf16* bias) {
  if (bias == nullptr) return;
  for (int64_t row = begin; row < begin + count; ++row)
    out[row] = to_bf16(to_float(out[row]) + to_float(bias[row]));
}

// Refuses what would be read beyond its end. One row of inputs, contiguous.
void check_inputs(const Tensor& x, int64_t inputs, const std::optional<Tensor>& bias, int64_t rows) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 && x.is_contiguous() &&
                      x.numel() == inputs && x.size(x.dim() - 1) == inputs,
                  "llmfit: x must be one contiguous row of ", inputs, " bfloat16 values");
  STD_TORCH_CHECK(!bias.has_value() ||
                      (bias->scalar_type() == ScalarType::BFloat16 &&
                       bias->is_contiguous() && bias->numel() == rows),
                  "llmfit: bias must be ", rows, " bfloat16 values");
}

void check_matrix(const Tensor& matrix, ScalarType type, int64_t count) {
  STD_TORCH_CHECK(matrix.scalar_type() == type && matrix.is_contiguous() && matrix.numel() == count,
                  "llmfit: a contiguous matrix of ", count, " values of another type was expected");
}

// ------------------------------------------------------------------ bfloat16

#if LLMFIT_AVX512
inline __m512bh load_bh(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }

inline __m512bh load_bh(const bf16* p, __mmask32 mask) {
  return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
}

inline float dot(const bf16* a, const bf16* b, int64_t count) {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0;
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    ask_ahead(a + k), ask_ahead(a + k + 32);
    s0 = _mm512_dpbf16_ps(s0, load_bh(a + k), load_bh(b + k));
    s1 = _mm512_dpbf16_ps(s1, load_bh(a + k + 32), load_bh(b + k + 32));
  }
  for (; k < count; k += 32) {
    const int64_t left = count - k;
    const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    s0 = _mm512_dpbf16_ps(s0, load_bh(a + k, mask), load_bh(b + k, mask));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}
#else
inline float dot(const bf16* a, const bf16* b, int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += to_float(a[k]) * to_float(b[k]);
  return sum;
}
#endif

// dot of two rows with the same inputs, which are read once for both.
#if LLMFIT_AVX512
inline void dot_both(const bf16* a0, const bf16* a1, const bf16* b, int64_t count, float sums[2]) {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, t0 = s0, t1 = s0;
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    const __m512bh x0 = load_bh(b + k), x1 = load_bh(b + k + 32);
    ask_ahead(a0 + k), ask_ahead(a0 + k + 32), ask_ahead(a1 + k), ask_ahead(a1 + k + 32);
    s0 = _mm512_dpbf16_ps(s0, load_bh(a0 + k), x0);
    t0 = _mm512_dpbf16_ps(t0, load_bh(a1 + k), x0);
    s1 = _mm512_dpbf16_ps(s1, load_bh(a0 + k + 32), x1);
    t1 = _mm512_dpbf16_ps(t1, load_bh(a1 + k + 32), x1);
  }
  for (; k < count; k += 32) {
    const int64_t left = count - k;
    const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    const __m512bh x = load_bh(b + k, mask);
    s0 = _mm512_dpbf16_ps(s0, load_bh(a0 + k, mask), x);
    t0 = _mm512_dpbf16_ps(t0, load_bh(a1 + k, mask), x);
  }
  sums[0] = _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
  sums[1] = _mm512_reduce_add_ps(_mm512_add_ps(t0, t1));
}
#endif

// Rows begin ... end - 1 of matrix bf16[N, K] times `in`, into their places of `out`.
//
// With AVX-512 they are read as two streams, half of them apart: each stays in order from page to
// page, as the prefetchers want it, and the inputs, which push each other out of a first-level cache
// where K is large, are read once for two rows.
void products(const bf16* matrix, const bf16* in, int64_t inputs, int64_t begin, int64_t end,
              const bf16* bias, bf16* out) {
  int64_t row = begin;
#if LLMFIT_AVX512
  const int64_t half = (end - begin) / 2;
  for (; row < begin + half; ++row) {
    float sums[2];
    dot_both(matrix + row * inputs, matrix + (row + half) * inputs, in, inputs, sums);
    store(out, row, sums[0], bias);
    store(out, row + half, sums[1], bias);
  }
  row += half;  // the second stream's are done
#endif
  for (; row < end; ++row) store(out, row, dot(matrix + row * inputs, in, inputs), bias);
}

// x bf16[..., K] with one row, weight bf16[N, K] -> bf16[..., N].
Tensor linear_bf16(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t rows = weight.size(0), inputs = weight.size(1);
  check_inputs(x, inputs, bias, rows);
  check_matrix(weight, ScalarType::BFloat16, rows * inputs);
  Tensor result = output_like(x, rows);
  const bf16 *in = data<bf16>(x), *matrix = data<bf16>(weight), *added = bias_data(bias);
  bf16* out = mutable_data<bf16>(result);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (2 * inputs));
  share_out(rows, grain, [&](int64_t begin, int64_t end) {
    products(matrix, in, inputs, begin, end, added, out);
  });
  return result;
}

// x bf16[..., K] with one row, weights bf16[N_i, K], biases bf16[N_i] or none at all
// -> bf16[..., N_0 + N_1 + ...], what linear_bf16 gives for each, side by side.
//
// Threads start and wait for each other once for all of them.
Tensor linears_bf16(const Tensor& x, const std::vector<Tensor>& weights,
                    const std::vector<Tensor>& biases) {
  STD_TORCH_CHECK(!weights.empty() && (biases.empty() || biases.size() == weights.size()),
                  "llmfit: ", weights.size(), " weights have ", biases.size(), " biases");
  const int64_t inputs = weights[0].size(1);
  std::vector<int64_t> starts;
  int64_t rows = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::optional<Tensor> bias = biases.empty() ? std::nullopt : std::optional(biases[i]);
    check_inputs(x, inputs, bias, weights[i].size(0));
    check_matrix(weights[i], ScalarType::BFloat16, weights[i].size(0) * inputs);
    starts.push_back(rows);
    rows += weights[i].size(0);
  }
  Tensor result = output_like(x, rows);
  const bf16* in = data<bf16>(x);
  bf16* out = mutable_data<bf16>(result);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (2 * inputs));
  share_out(rows, grain, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t first = std::max<int64_t>(0, begin - starts[i]);
      const int64_t last = std::min<int64_t>(weights[i].size(0), end - starts[i]);
      if (first < last)
        products(data<bf16>(weights[i]), in, inputs, first, last,
                 biases.empty() ? nullptr : data<bf16>(biases[i]), out + starts[i]);
    }
  });
  return result;
}

// ------------------------------------------------------------------ LLM.int8()

constexpr float kOf127 = 7.874015718698502e-3f;  // what bitsandbytes takes for 1 / 127

inline float to_half_and_back(float value) {
  return static_cast<float>(torch::headeronly::Half(value));
}

// Sums of (shifted[k] - 128) * weights[k] for the weights of two rows.
#if LLMFIT_AVX512
inline void dot_int8_both(const uint8_t* shifted, const int8_t* a, const int8_t* b, int64_t count,
                          int32_t sums[2]) {
  __m512i s = _mm512_setzero_si512(), t = s, v = s, w = s;
  const __m512i ones = _mm512_set1_epi8(1);  // 128 times the sum of the weights is taken off again
  for (int64_t k = 0; k < count; k += 64) {
    const int64_t left = count - k;
    const __mmask64 mask = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
    const __m512i x = _mm512_maskz_loadu_epi8(mask, shifted + k);
    const __m512i a0 = _mm512_maskz_loadu_epi8(mask, a + k);
    const __m512i b0 = _mm512_maskz_loadu_epi8(mask, b + k);
    ask_ahead(a + k), ask_ahead(b + k);
    s = _mm512_dpbusd_epi32(s, x, a0);
    t = _mm512_dpbusd_epi32(t, x, b0);
    v = _mm512_dpbusd_epi32(v, ones, a0);
    w = _mm512_dpbusd_epi32(w, ones, b0);
  }
  sums[0] = _mm512_reduce_add_epi32(s) - 128 * _mm512_reduce_add_epi32(v);
  sums[1] = _mm512_reduce_add_epi32(t) - 128 * _mm512_reduce_add_epi32(w);
}
#else
inline int32_t dot_int8(const uint8_t* shifted, const int8_t* weights, int64_t count) {
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k)
    sum += static_cast<int32_t>(static_cast<int16_t>(shifted[k] - 128) * weights[k]);
  return sum;
}

inline void dot_int8_both(const uint8_t* shifted, const int8_t* a, const int8_t* b, int64_t count,
                          int32_t sums[2]) {
  sums[0] = dot_int8(shifted, a, count);
  sums[1] = dot_int8(shifted, b, count);
}
#endif

// x bf16[..., K] with one row, weight int8[N, K], absmax float32[N] -> bf16[..., N].
//
// Inputs of magnitude `threshold` and more are outliers, multiplied in bfloat16; the others are
// rounded to int8 by the row's largest magnitude. Source: bitsandbytes 0.50, whose steps in float16,
// float32 and bfloat16 are followed one by one.
Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& absmax,
                   const std::optional<Tensor>& bias, double threshold) {
  const int64_t rows = weight.size(0), inputs = weight.size(1);
  check_inputs(x, inputs, bias, rows);
  check_matrix(weight, ScalarType::Char, rows * inputs);
  check_matrix(absmax, ScalarType::Float, rows);
  Tensor result = output_like(x, rows);
  const bf16 *in = data<bf16>(x), *added = bias_data(bias);
  const int8_t* matrix = data<int8_t>(weight);
  const float* scales = data<float>(absmax);
  bf16* out = mutable_data<bf16>(result);

  std::vector<uint8_t> shifted(inputs);
  std::vector<int64_t> outliers;
  float largest = 0.0f;
  bool numbers = true;
  for (int64_t k = 0; k < inputs; ++k) {
    const float size = std::fabs(to_half_and_back(to_float(in[k])));
    numbers &= size == size;
    if (threshold > 0.0 && size >= threshold) outliers.push_back(k);
    else largest = std::max(largest, size);
  }
  if (!numbers) {  // no int8 stands for a NaN, and a model that gives one is broken
    std::fill_n(out, rows, to_bf16(std::numeric_limits<float>::quiet_NaN()));
    return result;
  }
  const float factor = largest > 0.0f ? 1.0f / largest * 127.0f : 0.0f;  // as torch has 127 / x
  for (int64_t k = 0; k < inputs; ++k)
    shifted[k] = static_cast<uint8_t>(
        128 + static_cast<int32_t>(std::nearbyint(to_half_and_back(to_float(in[k])) * factor)));
  for (const int64_t k : outliers) shifted[k] = 128;

  const int64_t grain = std::max<int64_t>(1, kGrainBytes / inputs);
  share_out(rows, grain, [&](int64_t begin, int64_t end) {
    const auto finish = [&](int64_t row, int32_t sum) {
      const int8_t* line = matrix + row * inputs;
      const float scaled =
          static_cast<float>(sum) * (largest * scales[row]) * 6.200124e-05f;  // 1 / 127^2
      store(out, row, scaled, added);
      if (outliers.empty()) return;
      float exact = to_float(out[row]);
      for (const int64_t k : outliers)
        exact += to_float(in[k]) * to_float(to_bf16(line[k] * scales[row] * kOf127));
      out[row] = to_bf16(exact);
    };
    const int64_t half = (end - begin + 1) / 2;  // two streams, as in products()
    for (int64_t row = begin; row < begin + half; ++row) {
      const int64_t other = std::min(row + half, end - 1);  // of an odd number the last one twice
      int32_t sums[2];
      dot_int8_both(shifted.data(), matrix + row * inputs, matrix + other * inputs, inputs, sums);
      finish(row, sums[0]);
      finish(other, sums[1]);
    }
  });
  return result;
}

// Quantises the rows of x bf16[M, K] as LLM.int8() does for a product with many of them -> int8[M, K],
// the rows' largest magnitudes float32[M], and uint8[K], 1 for each column in which some row has an
// outlier. Those columns are 0 in the result.
std::tuple<Tensor, Tensor, Tensor> quantize_int8(const Tensor& x, double threshold) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 && x.is_contiguous() && x.dim() == 2,
                  "llmfit: x must be a contiguous matrix of bfloat16 values");
  const int64_t rows = x.size(0), inputs = x.size(1);
  Tensor codes = torch::stable::new_empty(x, {rows, inputs}, ScalarType::Char);
  Tensor absmax = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor outliers = torch::stable::new_zeros(x, {inputs}, ScalarType::Byte);
  const bf16* in = data<bf16>(x);
  int8_t* out = mutable_data<int8_t>(codes);
  float* sizes = mutable_data<float>(absmax);
  uint8_t* marked = mutable_data<uint8_t>(outliers);
  const float limit = threshold > 0.0 ? static_cast<float>(threshold)
                                      : std::numeric_limits<float>::infinity();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (4 * inputs));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(inputs);
    for (int64_t row = begin; row < end; ++row) {
      float largest = 0.0f;
      int64_t k = 0;
#if LLMFIT_AVX512
      __m512 most = _mm512_setzero_ps();
      __mmask16 none = 0;  // where no number is
      const __m512 bound = _mm512_set1_ps(limit);
      for (; k + 16 <= inputs; k += 16) {
        const __m512 exact = _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(in + row * inputs + k))), 16));
        __m512 value = _mm512_cvtph_ps(_mm512_cvtps_ph(exact, _MM_FROUND_TO_NEAREST_INT));
        none |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const __mmask16 beyond = _mm512_cmp_ps_mask(_mm512_abs_ps(value), bound, _CMP_GE_OQ);
        for (uint32_t left = beyond; left != 0; left &= left - 1) marked[k + __builtin_ctz(left)] = 1;
        value = _mm512_maskz_mov_ps(static_cast<__mmask16>(~beyond), value);
        most = _mm512_max_ps(most, _mm512_abs_ps(value));
        _mm512_storeu_ps(values.data() + k, value);
      }
      largest = none != 0 ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
#endif
      for (; k < inputs; ++k) {
        values[k] = to_half_and_back(to_float(in[row * inputs + k]));
        if (std::fabs(values[k]) >= limit) {
          marked[k] = 1;
          values[k] = 0.0f;
        }
        if (!(std::fabs(values[k]) <= largest || largest != largest)) largest = std::fabs(values[k]);
      }  // a NaN stays, and makes the products NaN by the row's size
      sizes[row] = largest;
      const float factor = largest > 0.0f ? 1.0f / largest * 127.0f : 0.0f;  // as torch has 127 / x
      int8_t* line = out + row * inputs;
      k = 0;
#if LLMFIT_AVX512
      for (const __m512 by = _mm512_set1_ps(factor); k + 16 <= inputs; k += 16) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values.data() + k), by);
        _mm_storeu_si128((__m128i*)(line + k), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled)));
      }
#endif
      for (; k < inputs; ++k)
        line[k] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(values[k] * factor)));
    }
  });
  for (int64_t k = 0; k < inputs; ++k)
    if (marked[k] != 0)
      for (int64_t row = 0; row < rows; ++row) out[row * inputs + k] = 0;
  return {codes, absmax, outliers};
}

// sums int32[M, N] of products of codes, absmax float32[M] of the inputs' rows and float32[N] of the
// weights' -> bf16[M, N].
Tensor rescale_int8(const Tensor& sums, const Tensor& input_absmax, const Tensor& weight_absmax,
                    const std::optional<Tensor>& bias) {
  const int64_t rows = sums.size(0), outputs = sums.size(1);
  check_matrix(sums, ScalarType::Int, rows * outputs);
  check_matrix(input_absmax, ScalarType::Float, rows);
  check_matrix(weight_absmax, ScalarType::Float, outputs);
  if (bias.has_value()) check_matrix(*bias, ScalarType::BFloat16, outputs);
  Tensor result = torch::stable::new_empty(sums, {rows, outputs}, ScalarType::BFloat16);
  const int32_t* in = data<int32_t>(sums);
  const float *row_sizes = data<float>(input_absmax), *column_sizes = data<float>(weight_absmax);
  const bf16* added = bias_data(bias);
  bf16* out = mutable_data<bf16>(result);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (4 * outputs));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float size = row_sizes[row];
      for (int64_t n = 0; n < outputs; ++n) {
        float value = static_cast<float>(in[row * outputs + n]) * (size * column_sizes[n]);
        value *= 6.200124e-05f;  // 1 / 127^2
        out[row * outputs + n] = to_bf16(added == nullptr ? value : value + to_float(added[n]));
      }
    }
  });
  return result;
}

// What LLM.int8() multiplies in bfloat16: of x bf16[M, K] and of weight int8[N, K] * absmax float32[N]
// the n columns that `marked` uint8[K] has -> bf16[M, n] and bf16[N, n], both n and M rounded up to a
// multiple with zeros. Both are empty where nothing is marked.
std::tuple<Tensor, Tensor> outliers_int8(const Tensor& x, const Tensor& weight, const Tensor& absmax,
                                         const Tensor& marked, int64_t row_multiple,
                                         int64_t column_multiple) {
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  check_matrix(x, ScalarType::BFloat16, rows * inputs);
  check_matrix(weight, ScalarType::Char, outputs * inputs);
  check_matrix(absmax, ScalarType::Float, outputs);
  check_matrix(marked, ScalarType::Byte, inputs);
  STD_TORCH_CHECK(row_multiple > 0 && column_multiple > 0, "llmfit: multiples are above 0");
  std::vector<int64_t> columns;
  for (int64_t k = 0; k < inputs; ++k)
    if (data<uint8_t>(marked)[k] != 0) columns.push_back(k);
  const int64_t count = static_cast<int64_t>(columns.size());
  const auto rounded_up = [](int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  };
  const int64_t width = rounded_up(count, column_multiple);
  Tensor of_inputs =
      torch::stable::new_zeros(x, {count == 0 ? 0 : rounded_up(rows, row_multiple), width});
  Tensor of_weights = torch::stable::new_zeros(x, {count == 0 ? 0 : outputs, width});
  if (count == 0) return {of_inputs, of_weights};
  const bf16* in = data<bf16>(x);
  const int8_t* matrix = data<int8_t>(weight);
  const float* scales = data<float>(absmax);
  bf16 *some_inputs = mutable_data<bf16>(of_inputs), *some_weights = mutable_data<bf16>(of_weights);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < count; ++i)
      some_inputs[row * width + i] = in[row * inputs + columns[i]];
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (64 * count));  // a line of the cache each
  torch::stable::parallel_for(0, outputs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < count; ++i)
        some_weights[row * width + i] =
            to_bf16(matrix[row * inputs + columns[i]] * scales[row] * kOf127);
  });
  return {of_inputs, of_weights};
}

// ------------------------------------------------------------------ four bits, bitsandbytes' packing

constexpr int64_t kPackedRows = 32;  // rows that bitsandbytes packs together for its CPU kernel

// Scales of `count` values lie `stride` values apart from block to block, which no prefetcher of the
// hardware finds. Asks for those of a later block, after the last one for those of the next rows.
inline void ask_for_scales(const bf16* now, int64_t block, int64_t blocks, int64_t stride,
                           int64_t count) {
  constexpr int64_t kBlocksAhead = 16;
  int64_t ahead = kBlocksAhead;
  if (block + ahead >= blocks) {
    ahead = std::min(ahead, blocks) - blocks;
    now += count;
  }
  for (int64_t i = 0; i < count; i += 32) __builtin_prefetch(now + ahead * stride + i, 0, 2);
}

#if LLMFIT_AVX512
inline __m512 load_bf16_as_float(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

inline __m512bh pair(const bf16* x) {  // two neighbouring inputs, for all rows
  int32_t both;
  std::memcpy(&both, x, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

inline __m512bh look_up(__m512i table, __m512i codes) {
  return (__m512bh)_mm512_permutexvar_epi16(codes, table);
}

inline void store_rows(bf16* out, __m512 sums) {
  _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh(sums));
}

inline __m512i load_table(const bf16* table) {  // 16 values, twice
  return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)table));
}

// 32 rows: byte b of the pair of inputs p holds, in its low half, input 2p + b % 2 of row b / 2, and in
// its high half that of row 16 + b / 2.
inline void packed_rows(const uint8_t* codes, const bf16* in, const bf16* absmax, int64_t stride,
                        __m512i table, int64_t inputs, int64_t block, __m512 sums[2]) {
  const __m512i low_half = _mm512_set1_epi16(15);
  const int64_t blocks = inputs / block;
  for (int64_t b = 0; b < blocks; ++b, absmax += stride) {
    ask_for_scales(absmax, b, blocks, stride, kPackedRows);
    const int64_t start = b * block;
    __m512 a0 = _mm512_setzero_ps(), a1 = a0, b0 = a0, b1 = a0;
    for (int64_t k = start; k < start + block; k += 4, codes += 64) {
      const __m512i c0 = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
      const __m512i c1 = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(codes + 32)));
      const __m512bh x0 = pair(in + k), x1 = pair(in + k + 2);
      ask_far_ahead(codes);
      a0 = _mm512_dpbf16_ps(a0, look_up(table, _mm512_and_si512(c0, low_half)), x0);
      b0 = _mm512_dpbf16_ps(b0, look_up(table, _mm512_srli_epi16(c0, 4)), x0);
      a1 = _mm512_dpbf16_ps(a1, look_up(table, _mm512_and_si512(c1, low_half)), x1);
      b1 = _mm512_dpbf16_ps(b1, look_up(table, _mm512_srli_epi16(c1, 4)), x1);
    }
    sums[0] = _mm512_fmadd_ps(_mm512_add_ps(a0, a1), load_bf16_as_float(absmax), sums[0]);
    sums[1] = _mm512_fmadd_ps(_mm512_add_ps(b0, b1), load_bf16_as_float(absmax + 16), sums[1]);
  }
}
#endif

// x bf16[..., K] with one row, codes uint8[N, K/2] packed by 32 rows, absmax bf16[K/block, N],
// table bf16[16] of the codes' values -> bf16[..., N].
Tensor linear_4bit_packed(const Tensor& x, const Tensor& codes, const Tensor& absmax,
                          const Tensor& table, const std::optional<Tensor>& bias, int64_t block) {
  const int64_t rows = absmax.size(1), inputs = x.size(x.dim() - 1);
  STD_TORCH_CHECK(block > 0 && block % 4 == 0 && inputs % block == 0 && rows % kPackedRows == 0,
                  "llmfit: ", rows, " x ", inputs, " weights in blocks of ", block, " are not packed so");
  check_inputs(x, inputs, bias, rows);
  check_matrix(codes, ScalarType::Byte, rows * inputs / 2);
  check_matrix(absmax, ScalarType::BFloat16, rows * inputs / block);
  check_matrix(table, ScalarType::BFloat16, 16);
  Tensor result = output_like(x, rows);
  const bf16 *in = data<bf16>(x), *scales = data<bf16>(absmax), *added = bias_data(bias);
  const bf16* values = data<bf16>(table);
  const uint8_t* packed = data<uint8_t>(codes);
  bf16* out = mutable_data<bf16>(result);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (kPackedRows * inputs / 2));
  share_out(rows / kPackedRows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t row = group * kPackedRows;
      const uint8_t* line = packed + row * (inputs / 2);
#if LLMFIT_AVX512
      __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      packed_rows(line, in, scales + row, rows, load_table(values), inputs, block, sums);
      store_rows(out + row, sums[0]);
      store_rows(out + row + 16, sums[1]);
#else
      float sums[kPackedRows] = {};
      for (int64_t start = 0; start < inputs; start += block) {
        float part[kPackedRows] = {};
        for (int64_t k = start; k < start + block; ++k)
          for (int64_t r = 0; r < kPackedRows; ++r) {
            const uint8_t both = line[(k / 2) * kPackedRows + (r % 16) * 2 + k % 2];
            part[r] += to_float(values[r < 16 ? both & 15 : both >> 4]) * to_float(in[k]);
          }
        for (int64_t r = 0; r < kPackedRows; ++r)
          sums[r] += part[r] * to_float(scales[(start / block) * rows + row + r]);
      }
      for (int64_t r = 0; r < kPackedRows; ++r) out[row + r] = to_bf16(sums[r]);
#endif
      add_after_rounding(out, row, kPackedRows, added);
    }
  });
  return result;
}

// ------------------------------------------------------------------ four bits, PyTorch's int4pack

constexpr int64_t kInt4Rows = 64;  // rows that PyTorch packs together where it has AVX-512

#if LLMFIT_AVX512
// Scales and zeros of the rows n ... n + 7 and n + 16 ... n + 23, as the codes below are interleaved.
inline void scale_rows(const bf16* scales_and_zeros, int64_t n, __m512 part, __m512 input_sum,
                       __m512& sum) {
  const __m256i low = _mm256_loadu_si256((const __m256i*)(scales_and_zeros + 2 * n));
  const __m256i high = _mm256_loadu_si256((const __m256i*)(scales_and_zeros + 2 * (n + 16)));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  const __m512 zero =
      _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int32_t(0xffff0000))));
  sum = _mm512_fmadd_ps(part, scale, _mm512_fmadd_ps(input_sum, zero, sum));
}

inline void store_half_rows(bf16* out, __m512 sums) {
  bf16 values[16];
  store_rows(values, sums);
  std::memcpy(out, values, 16);
  std::memcpy(out + 16, values + 8, 16);
}
#endif

// x bf16[..., K] with one row, codes uint8[N, K/2] of _convert_weight_to_int4pack_for_cpu,
// scales_and_zeros bf16[K/group, N, 2] -> bf16[..., N]; a weight is scale * (code - 8) + zero.
//
// Only for N in multiples of 64, packed by a PyTorch that runs with AVX-512: byte b of input k holds
// rows b and b + 32 for b < 16, and rows b and b + 32 shifted by 16 beyond.
Tensor linear_int4(const Tensor& x, const Tensor& codes, const Tensor& scales_and_zeros,
                   const std::optional<Tensor>& bias, int64_t group) {
  const int64_t rows = scales_and_zeros.size(1), inputs = x.size(x.dim() - 1);
  STD_TORCH_CHECK(group > 0 && group % 2 == 0 && inputs % group == 0 && rows % kInt4Rows == 0,
                  "llmfit: ", rows, " x ", inputs, " weights in groups of ", group, " are not packed so");
  check_inputs(x, inputs, bias, rows);
  check_matrix(codes, ScalarType::Byte, rows * inputs / 2);
  check_matrix(scales_and_zeros, ScalarType::BFloat16, 2 * rows * inputs / group);
  Tensor result = output_like(x, rows);
  const bf16 *in = data<bf16>(x), *scales = data<bf16>(scales_and_zeros), *added = bias_data(bias);
  const uint8_t* packed = data<uint8_t>(codes);
  bf16* out = mutable_data<bf16>(result);

  const int64_t groups = inputs / group;
  std::vector<float> input_sums(groups, 0.0f);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t k = g * group; k < (g + 1) * group; ++k) input_sums[g] += to_float(in[k]);

#if LLMFIT_AVX512
  alignas(64) static const bf16 kCodes[16] = {  // -8 ... 7
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  const __m512i table = load_table(kCodes), low_half = _mm512_set1_epi16(15);
#endif
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (kInt4Rows * inputs / 2));
  share_out(rows / kInt4Rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kInt4Rows;
      const uint8_t* line = packed + row * (inputs / 2);
#if LLMFIT_AVX512
      __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
      for (int64_t g = 0; g < groups; ++g) {
        const bf16* scale = scales + 2 * (g * rows + row);
        ask_for_scales(scale, g, groups, 2 * rows, 2 * kInt4Rows);
        __m512 p0 = _mm512_setzero_ps(), p1 = p0, p2 = p0, p3 = p0;
        for (int64_t k = g * group; k < (g + 1) * group; k += 2, line += 64) {
          const __m256i a = _mm256_loadu_si256((const __m256i*)line);
          const __m256i b = _mm256_loadu_si256((const __m256i*)(line + 32));
          const __m512i c0 = _mm512_cvtepu8_epi16(_mm256_unpacklo_epi8(a, b));
          const __m512i c1 = _mm512_cvtepu8_epi16(_mm256_unpackhi_epi8(a, b));
          const __m512bh both = pair(in + k);
          ask_far_ahead(line);
          p0 = _mm512_dpbf16_ps(p0, look_up(table, _mm512_and_si512(c0, low_half)), both);
          p1 = _mm512_dpbf16_ps(p1, look_up(table, _mm512_and_si512(c1, low_half)), both);
          p2 = _mm512_dpbf16_ps(p2, look_up(table, _mm512_srli_epi16(c0, 4)), both);
          p3 = _mm512_dpbf16_ps(p3, look_up(table, _mm512_srli_epi16(c1, 4)), both);
        }
        const __m512 input_sum = _mm512_set1_ps(input_sums[g]);
        scale_rows(scale, 0, p0, input_sum, s0);
        scale_rows(scale, 8, p1, input_sum, s1);
        scale_rows(scale, 32, p2, input_sum, s2);
        scale_rows(scale, 40, p3, input_sum, s3);
      }
      store_half_rows(out + row, s0);
      store_half_rows(out + row + 8, s1);
      store_half_rows(out + row + 32, s2);
      store_half_rows(out + row + 40, s3);
#else
      float sums[kInt4Rows] = {};
      for (int64_t g = 0; g < groups; ++g) {
        float part[kInt4Rows] = {};
        for (int64_t k = g * group; k < (g + 1) * group; ++k)
          for (int64_t r = 0; r < kInt4Rows; ++r) {
            const uint8_t both = line[k * 32 + r % 32];
            part[r] += float(int32_t(r < 32 ? both & 15 : both >> 4) - 8) * to_float(in[k]);
          }
        for (int64_t r = 0; r < kInt4Rows; ++r) {
          const bf16* scale = scales + 2 * (g * rows + row + r);
          sums[r] += to_float(scale[0]) * part[r] + to_float(scale[1]) * input_sums[g];
        }
      }
      for (int64_t r = 0; r < kInt4Rows; ++r) out[row + r] = to_bf16(sums[r]);
#endif
      add_after_rounding(out, row, kInt4Rows, added);
    }
  });
  return result;
}

// ------------------------------------------------------------------ four bits, made bfloat16

// Many rows of inputs are best multiplied by PyTorch's own kernel for bfloat16, with a few output rows'
// weights at a time: this makes them. A weight is value * scale in float32, rounded once.

constexpr int64_t kUnpackedInputs = 32;  // at a time, all of one block: a line of the cache

#if LLMFIT_AVX512
// 16 x 16 words turned over: lane p of v[r] becomes what was lane r of v[p].
inline void transpose_words(__m512i v[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    v[j] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0xdd);
  }
}

// 32 weights of a row. The lowest four bits of the halves of lane p are the codes of inputs 2p and
// 2p + 1; a look-up reads no other bits.
inline void store_weights(bf16* out, __m512i pairs, __m512 values, float scale) {
  alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512 by = _mm512_set1_ps(scale);
  const __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(pairs, values), by);
  const __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 16), values), by);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
}
#endif

// codes uint8[N, K/2] as in linear_4bit_packed, absmax bf16[K/block, N], table float32[16]
// -> bf16[end - begin, K], the weights of the rows begin ... end - 1.
Tensor unpack_4bit_packed(const Tensor& codes, const Tensor& absmax, const Tensor& table,
                          int64_t block, int64_t begin, int64_t end) {
  const int64_t rows = absmax.size(1), inputs = absmax.size(0) * block;
  STD_TORCH_CHECK(block > 0 && block % kUnpackedInputs == 0 && rows % kPackedRows == 0,
                  "llmfit: ", rows, " x ", inputs, " weights in blocks of ", block,
                  " are not unpacked here");
  STD_TORCH_CHECK(0 <= begin && begin < end && end <= rows && begin % kPackedRows == 0 &&
                      end % kPackedRows == 0,
                  "llmfit: rows ", begin, " to ", end, " are not whole groups of ", kPackedRows,
                  " of ", rows);
  check_matrix(codes, ScalarType::Byte, rows * inputs / 2);
  check_matrix(absmax, ScalarType::BFloat16, rows * inputs / block);
  check_matrix(table, ScalarType::Float, 16);
  Tensor result = torch::stable::new_empty(absmax, {end - begin, inputs});
  const bf16* scales = data<bf16>(absmax);
  const float* values = data<float>(table);
  const uint8_t* packed = data<uint8_t>(codes);
  bf16* weights = mutable_data<bf16>(result);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (2 * kPackedRows * inputs));
  share_out((end - begin) / kPackedRows, grain, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row = begin + tile * kPackedRows;
      const uint8_t* line = packed + row * (inputs / 2);
      bf16* out = weights + tile * kPackedRows * inputs;
      for (int64_t k = 0; k < inputs; k += kUnpackedInputs, line += 16 * kPackedRows) {
        const bf16* scale = scales + k / block * rows + row;
#if LLMFIT_AVX512
        const __m512 looked_up = _mm512_loadu_ps(values);
        __m512i v[16];
        for (int p = 0; p < 16; ++p)
          v[p] = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(line + 32 * p)));
        ask_far_ahead(line);
        transpose_words(v);
        for (int r = 0; r < 16; ++r) {
          store_weights(out + r * inputs + k, v[r], looked_up, to_float(scale[r]));
          store_weights(out + (r + 16) * inputs + k, _mm512_srli_epi32(v[r], 4), looked_up,
                        to_float(scale[r + 16]));
        }
#else
        for (int64_t r = 0; r < kPackedRows; ++r)
          for (int64_t i = 0; i < kUnpackedInputs; ++i) {
            const uint8_t both = line[(i / 2) * kPackedRows + (r % 16) * 2 + i % 2];
            out[r * inputs + k + i] =
                to_bf16(values[r < 16 ? both & 15 : both >> 4] * to_float(scale[r]));
          }
#endif
      }
    }
  });
  return result;
}

// ------------------------------------------------------------------ normalisation

// x bf16[..., K] with one row, weight bf16[K] -> bf16[..., K]: x over the root of its mean square, rounded,
// times the weight, as transformers' Llama and its like have it.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  const int64_t width = weight.numel();
  check_inputs(x, width, weight, width);
  Tensor result = output_like(x, width);
  const bf16 *in = data<bf16>(x), *by = data<bf16>(weight);
  bf16* out = mutable_data<bf16>(result);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t k = 0; k < width; ++k) squares += to_float(in[k]) * to_float(in[k]);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(epsilon));
  for (int64_t k = 0; k < width; ++k)
    out[k] = to_bf16(to_float(by[k]) * to_float(to_bf16(to_float(in[k]) * scale)));
  return result;
}

// ------------------------------------------------------------------ attention

#if LLMFIT_AVX512
// The sums of 16 vectors: lane j of the result is that of v[j].
inline __m512 sums_of_16(const __m512 v[16]) {
  __m512 a[8], b[4];
  for (int p = 0; p < 8; ++p)
    a[p] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * p], v[2 * p + 1]),
                         _mm512_unpackhi_ps(v[2 * p], v[2 * p + 1]));
  for (int p = 0; p < 4; ++p) {
    const __m512d low = _mm512_castps_pd(a[2 * p]), high = _mm512_castps_pd(a[2 * p + 1]);
    b[p] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  }
  const __m512 c0 = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88),
                                  _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
  const __m512 c1 = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88),
                                  _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(c0, c1, 0x88), _mm512_shuffle_f32x4(c0, c1, 0xdd));
}

// exp of what is not above 0, within 2 units in the last place. Source: Cephes, expf.
inline __m512 exp_below_0(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-88.0f), x);  // in this order a NaN stays one
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  x = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), x);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                        5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(_mm512_mul_ps(x, x), p, _mm512_add_ps(x, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline __mmask16 first_lanes(int64_t left) {
  return left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
}

void scores(const bf16* query, const bf16* keys, int64_t stride, int64_t width, int64_t seen,
            float* result) {
  int64_t t = 0;
  for (; t + 16 <= seen; t += 16) {
    __m512 parts[16];
    for (int64_t j = 0; j < 16; ++j) {
      const bf16* key = keys + (t + j) * stride;
      __m512 part = _mm512_setzero_ps();
      int64_t d = 0;
      for (; d + 32 <= width; d += 32)
        part = _mm512_dpbf16_ps(part, load_bh(query + d), load_bh(key + d));
      if (d < width) {
        const __mmask32 mask = (__mmask32(1) << (width - d)) - 1;
        part = _mm512_dpbf16_ps(part, load_bh(query + d, mask), load_bh(key + d, mask));
      }
      parts[j] = part;
    }
    _mm512_storeu_ps(result + t, sums_of_16(parts));
  }
  for (; t < seen; ++t) result[t] = dot(query, keys + t * stride, width);
}

// Replaces scores by exp(scale * (score - largest)); returns their sum.
float exponentials(float* scores, int64_t seen, float scale) {
  __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t t = 0; t < seen; t += 16) {
    const __mmask16 mask = first_lanes(seen - t);
    most = _mm512_mask_max_ps(most, mask, most, _mm512_maskz_loadu_ps(mask, scores + t));
  }
  const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most)), by = _mm512_set1_ps(scale);
  __m512 total = _mm512_setzero_ps();
  for (int64_t t = 0; t < seen; t += 16) {
    const __mmask16 mask = first_lanes(seen - t);
    const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + t), largest);
    const __m512 value = exp_below_0(_mm512_mul_ps(below, by));
    _mm512_mask_storeu_ps(scores + t, mask, value);
    total = _mm512_mask_add_ps(total, mask, total, value);
  }
  return _mm512_reduce_add_ps(total);
}

// The values weighted and divided by `total`, 64 at a time in registers.
void weighted_sum(const float* weights, const bf16* values, int64_t stride, int64_t width,
                  int64_t seen, float total, bf16* result) {
  const __m512 by = _mm512_set1_ps(total);
  int64_t d = 0;
  for (; d + 64 <= width; d += 64) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t t = 0; t < seen; ++t) {
      const __m512 weight = _mm512_set1_ps(weights[t]);
      const bf16* value = values + t * stride + d;
      s0 = _mm512_fmadd_ps(weight, load_bf16_as_float(value), s0);
      s1 = _mm512_fmadd_ps(weight, load_bf16_as_float(value + 16), s1);
      s2 = _mm512_fmadd_ps(weight, load_bf16_as_float(value + 32), s2);
      s3 = _mm512_fmadd_ps(weight, load_bf16_as_float(value + 48), s3);
    }
    store_rows(result + d, _mm512_div_ps(s0, by));
    store_rows(result + d + 16, _mm512_div_ps(s1, by));
    store_rows(result + d + 32, _mm512_div_ps(s2, by));
    store_rows(result + d + 48, _mm512_div_ps(s3, by));
  }
  for (; d + 16 <= width; d += 16) {
    __m512 s = _mm512_setzero_ps();
    for (int64_t t = 0; t < seen; ++t)
      s = _mm512_fmadd_ps(_mm512_set1_ps(weights[t]), load_bf16_as_float(values + t * stride + d), s);
    store_rows(result + d, _mm512_div_ps(s, by));
  }
  for (; d < width; ++d) {
    float sum = 0.0f;
    for (int64_t t = 0; t < seen; ++t) sum += weights[t] * to_float(values[t * stride + d]);
    result[d] = to_bf16(sum / total);
  }
}
#else
void scores(const bf16* query, const bf16* keys, int64_t stride, int64_t width, int64_t seen,
            float* result) {
  for (int64_t t = 0; t < seen; ++t) result[t] = dot(query, keys + t * stride, width);
}

// Replaces scores by exp(scale * (score - largest)); returns their sum.
float exponentials(float* scores, int64_t seen, float scale) {
  const float most = *std::max_element(scores, scores + seen);
  float total = 0.0f;
  for (int64_t t = 0; t < seen; ++t) {
    scores[t] = std::exp(scale * (scores[t] - most));
    total += scores[t];
  }
  return total;
}

// The values weighted and divided by `total`.
void weighted_sum(const float* weights, const bf16* values, int64_t stride, int64_t width,
                  int64_t seen, float total, bf16* result) {
  std::vector<float> sums(width, 0.0f);
  for (int64_t t = 0; t < seen; ++t) {
    const bf16* value = values + t * stride;
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) sums[d] += weights[t] * to_float(value[d]);
  }
  for (int64_t d = 0; d < width; ++d) result[d] = to_bf16(sums[d] / total);
}
#endif

// Attention of one new token a sequence over the filled part of a preallocated cache.
//
// query bf16[B, H, 1, D], keys and values bf16[B, H_kv, capacity, D or D_v], held int64[] tokens that
// are in them, of which the last `window` are seen (0: all) -> bf16[B, 1, H, D_v].
Tensor attend(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& held,
              double scale, int64_t window) {
  const int64_t batch = query.size(0), heads = query.size(1), width = query.size(3);
  const int64_t shared = keys.size(1), out_width = values.size(3), each = heads / shared;
  STD_TORCH_CHECK(query.scalar_type() == ScalarType::BFloat16 && query.size(2) == 1 &&
                      keys.scalar_type() == ScalarType::BFloat16 && keys.size(0) == batch &&
                      keys.size(3) == width && heads % shared == 0 &&
                      values.scalar_type() == ScalarType::BFloat16 && values.size(0) == batch &&
                      values.size(1) == shared && values.size(2) == keys.size(2) &&
                      query.stride(3) == 1 && keys.stride(3) == 1 && values.stride(3) == 1,
                  "llmfit: query, keys and values do not belong together");
  const int64_t end_slot = *data<int64_t>(held);
  STD_TORCH_CHECK(end_slot > 0 && end_slot <= keys.size(2), "llmfit: ", end_slot,
                  " tokens are not within the cache of ", keys.size(2));
  const int64_t first = window > 0 ? std::max<int64_t>(0, end_slot - window) : 0;
  const int64_t seen = end_slot - first;
  const int64_t shape[4] = {batch, 1, heads, out_width};
  Tensor result = torch::stable::new_empty(query, torch::headeronly::IntHeaderOnlyArrayRef(shape, 4));
  const bf16 *q = data<bf16>(query), *ks = data<bf16>(keys), *vs = data<bf16>(values);
  bf16* out = mutable_data<bf16>(result);
  const int64_t grain =
      std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, 2 * seen * (width + out_width)));
  torch::stable::parallel_for(0, batch * shared, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> weights(seen);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t sequence = index / shared, head = index % shared;
      const bf16* key = ks + sequence * keys.stride(0) + head * keys.stride(1) + first * keys.stride(2);
      const bf16* value =
          vs + sequence * values.stride(0) + head * values.stride(1) + first * values.stride(2);
      for (int64_t own = head * each; own < (head + 1) * each; ++own) {
        const bf16* one = q + sequence * query.stride(0) + own * query.stride(1);
        scores(one, key, keys.stride(2), width, seen, weights.data());
        const float total = exponentials(weights.data(), seen, static_cast<float>(scale));
        weighted_sum(weights.data(), value, values.stride(2), out_width, seen, total,
                     out + (sequence * heads + own) * out_width);
      }
    }
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(llmfit, m) {
  m.def("linear_bf16(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linears_bf16(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor");
  m.def("linear_int8(Tensor x, Tensor weight, Tensor absmax, Tensor? bias, float threshold) -> Tensor");
  m.def("quantize_int8(Tensor x, float threshold) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rescale_int8(Tensor sums, Tensor input_absmax, Tensor weight_absmax, Tensor? bias) -> Tensor");
  m.def(
      "outliers_int8(Tensor x, Tensor weight, Tensor absmax, Tensor marked, int row_multiple, "
      "int column_multiple) -> (Tensor, Tensor)");
  m.def(
      "linear_4bit_packed(Tensor x, Tensor codes, Tensor absmax, Tensor table, Tensor? bias, "
      "int block) -> Tensor");
  m.def(
      "linear_int4(Tensor x, Tensor codes, Tensor scales_and_zeros, Tensor? bias, int group) "
      "-> Tensor");
  m.def(
      "unpack_4bit_packed(Tensor codes, Tensor absmax, Tensor table, int block, int begin, int end) "
      "-> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  m.def(
      "attend(Tensor query, Tensor keys, Tensor values, Tensor held, float scale, int window) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(llmfit, CPU, m) {
  m.impl("linear_bf16", TORCH_BOX(&linear_bf16));
  m.impl("linears_bf16", TORCH_BOX(&linears_bf16));
  m.impl("linear_int8", TORCH_BOX(&linear_int8));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8));
  m.impl("rescale_int8", TORCH_BOX(&rescale_int8));
  m.impl("outliers_int8", TORCH_BOX(&outliers_int8));
  m.impl("linear_4bit_packed", TORCH_BOX(&linear_4bit_packed));
  m.impl("linear_int4", TORCH_BOX(&linear_int4));
  m.impl("unpack_4bit_packed", TORCH_BOX(&unpack_4bit_packed));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("attend", TORCH_BOX(&attend));
}
