// Attention over one source or several on a processor with AVX-512: the forward pass of
// hmc_fast.kernels.reference, one block of scores at a time (Dao 2023, FlashAttention-2).
//
// Products are oneDNN's small ones, which PyTorch offers to its own kernels. They add up in fp32, also
// those of bf16. Softmax is computed here, in fp32, while the block is in the core's cache.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kVector = 16;  // fp32 numbers in a register
constexpr int64_t kKeys = 512;   // of a block of scores
// Exponents below these count as zero, so that products are no denormal numbers, which take many times
// as long: 2^-87 is nothing beside a number of the same row. A row with none above 2^-29 counts only
// beside other sources, and its few that are larger than denormal are kept.
constexpr float kFloor = -87, kNear = -29, kLeast = -126;
constexpr float kLn2 = 0.6931471805599453f;

struct Tokens {  // of one tensor [B, N, H, D] whose last axis has no gaps; strides in elements
  const void* data;
  int64_t count, width, batch_stride, token_stride, head_stride;
};

struct Source {
  Tokens keys, values;
  void* out;  // [B, M, H, width of the values], without gaps
};

struct Problem {
  int64_t is_bf16, batch, heads, sources;
  float scale;
  Tokens queries;
  const Source* source;
  float* lse;      // [B, H, M]
  float* weights;  // [B, H, M, S]
};

template <typename T>
const T* head_of(const Tokens& tokens, int64_t film, int64_t head) {
  return static_cast<const T*>(tokens.data) + film * tokens.batch_stride + head * tokens.head_stride;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
int64_t paired(int64_t count) {  // bf16 is multiplied in pairs of rows
  return std::is_same_v<T, float> ? count : ceil_div(count, 2) * 2;
}

// The right factor of a product, [rows, columns] of given strides, as oneDNN wants it.
template <typename T>
void pack(const T* from, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to[i * columns + j] = from[i * row_stride + j * column_stride];
  } else {
    for (int64_t i = 0; i < rows; i += 2)
      for (int64_t j = 0; j < columns; ++j) {
        const T* pair = from + i * row_stride + j * column_stride;
        to[i * columns + 2 * j] = pair[0];
        to[i * columns + 2 * j + 1] = i + 1 < rows ? pair[row_stride] : T(0);
      }
  }
}

__mmask16 first(int64_t count) { return count >= kVector ? 0xffff : (1u << count) - 1; }

// 2^x to one unit in the last place for x <= 0: a Taylor series of 2^f, |f| <= 1/2.
__m512 exp2_of(__m512 x, __m512 floor) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5252734e-5f);
  for (float c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
  const __mmask16 counts = _mm512_cmp_ps_mask(x, floor, _CMP_NLT_UQ);  // NaN stays
  return _mm512_maskz_scalef_ps(counts, y, whole);
}

template <typename T>
struct Row {  // memory of one thread
  std::unique_ptr<float, decltype(&std::free)> scores{nullptr, &std::free};
  std::unique_ptr<T, decltype(&std::free)> rounded{nullptr, &std::free};
  std::vector<std::unique_ptr<float, decltype(&std::free)>> outs;
  std::vector<float> maximum, sums;
};

template <typename N>
N* allocate(int64_t count) {
  void* memory = std::aligned_alloc(64, ceil_div(count * sizeof(N), 64) * 64);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<N*>(memory);
}

// Exponentials of one row of scores, whose largest is `own`, against `maximum`, written to `to`;
// returns their sum.
template <typename T>
float exponentials(const float* scores, int64_t keys, float factor, float own, float maximum, T* to) {
  const __m512 by = _mm512_set1_ps(factor), less = _mm512_set1_ps(maximum);
  const __m512 floor = _mm512_set1_ps(own - maximum > kNear ? kFloor : kLeast);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < keys; c += kVector) {
    const __mmask16 there = first(keys - c);
    __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(there, scores + c), by, less);
    x = _mm512_maskz_mov_ps(there, exp2_of(x, floor));
    sum = _mm512_add_ps(sum, x);
    if constexpr (std::is_same_v<T, float>) {
      _mm512_mask_storeu_ps(to + c, there, x);
    } else {  // a block's memory ends behind a whole register
#ifdef __AVX512BF16__
      const __m256bh half = _mm512_cvtneps_pbh(x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), reinterpret_cast<const __m256i&>(half));
#endif
    }
  }
  return _mm512_reduce_add_ps(sum);
}

float largest(const float* scores, int64_t keys, float factor) {
  const __m512 by = _mm512_set1_ps(factor), least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 found = least;
  for (int64_t c = 0; c < keys; c += kVector) {
    const __mmask16 there = first(keys - c);
    const __m512 x = _mm512_mask_mul_ps(least, there, _mm512_maskz_loadu_ps(there, scores + c), by);
    found = _mm512_max_ps(x, found);
  }
  return _mm512_reduce_max_ps(found);
}

void scale_row(float* row, int64_t width, float factor) {
  const __m512 by = _mm512_set1_ps(factor);
  for (int64_t c = 0; c < width; c += kVector) {
    const __mmask16 there = first(width - c);
    _mm512_mask_storeu_ps(row + c, there, _mm512_mul_ps(_mm512_maskz_loadu_ps(there, row + c), by));
  }
}

template <typename T>
void store_row(const float* from, int64_t width, float factor, T* to) {
  for (int64_t c = 0; c < width; ++c) to[c] = static_cast<T>(from[c] * factor);
}

template <typename T>
struct PackedHead {  // of every source, its blocks of keys and of values
  std::vector<std::vector<T>> keys, values;
};

template <typename T>
class Attention {
 public:
  explicit Attention(const Problem& problem) : p_(problem), factor_(problem.scale / kLn2) {
    rows_ = p_.queries.count >= 8192 ? 256 : 64;
    blocks_ = ceil_div(p_.queries.count, rows_);
    const int64_t in_all = p_.batch * p_.heads;
    together_ = std::clamp<int64_t>(ceil_div(8 * at::get_num_threads(), blocks_), 1, in_all);
  }

  void run() {
    const int64_t in_all = p_.batch * p_.heads;
    std::vector<PackedHead<T>> packed(together_);
    for (auto& head : packed)
      for (int64_t s = 0; s < p_.sources; ++s) {
        const Source& source = p_.source[s];
        const int64_t count = ceil_div(source.keys.count, kKeys);
        head.keys.emplace_back(count * paired<T>(source.keys.width) * kKeys);
        head.values.emplace_back(count * kKeys * source.values.width);
      }
    for (int64_t start = 0; start < in_all; start += together_) {
      const int64_t heads = std::min(together_, in_all - start);
      for (int64_t s = 0; s < p_.sources; ++s) {
        const int64_t count = ceil_div(p_.source[s].keys.count, kKeys);
        at::parallel_for(0, heads * count, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) pack_block(start + i / count, s, i % count, packed[i / count]);
        });
      }
      at::parallel_for(0, heads * blocks_, 1, [&](int64_t begin, int64_t end) {
        Row<T> row = memory();
        for (int64_t i = begin; i < end; ++i) attend(start + i / blocks_, i % blocks_, packed[i / blocks_], row);
        at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
      });
    }
  }

 private:
  const Problem& p_;
  float factor_;  // scores are in units of ln 2
  int64_t rows_, blocks_, together_;

  Row<T> memory() const {
    Row<T> row;
    row.scores.reset(allocate<float>(rows_ * kKeys));
    if constexpr (!std::is_same_v<T, float>) row.rounded.reset(allocate<T>(rows_ * kKeys));
    for (int64_t s = 0; s < p_.sources; ++s)
      row.outs.emplace_back(allocate<float>(rows_ * p_.source[s].values.width), &std::free);
    row.maximum.resize(rows_);
    row.sums.resize(rows_ * p_.sources);
    return row;
  }

  void pack_block(int64_t index, int64_t s, int64_t block, PackedHead<T>& head) const {
    const Tokens &k = p_.source[s].keys, &v = p_.source[s].values;
    const int64_t film = index / p_.heads, number = index % p_.heads, first_key = block * kKeys;
    const int64_t count = std::min(kKeys, k.count - first_key);
    pack<T>(head_of<T>(k, film, number) + first_key * k.token_stride, k.width, count, 1, k.token_stride,
            head.keys[s].data() + block * paired<T>(k.width) * kKeys);
    pack<T>(head_of<T>(v, film, number) + first_key * v.token_stride, count, v.width, v.token_stride, 1,
            head.values[s].data() + block * kKeys * v.width);
  }

  void attend(int64_t index, int64_t block, const PackedHead<T>& head, Row<T>& row) const {
    const int64_t film = index / p_.heads, number = index % p_.heads, width = p_.queries.width;
    const int64_t first_row = block * rows_, rows = std::min(rows_, p_.queries.count - first_row);
    const T* q = head_of<T>(p_.queries, film, number) + first_row * p_.queries.token_stride;
    std::fill(row.maximum.begin(), row.maximum.end(), -std::numeric_limits<float>::infinity());
    std::fill(row.sums.begin(), row.sums.end(), 0.0f);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const Source& source = p_.source[s];
      const int64_t columns = source.values.width;
      for (int64_t start = 0, b = 0; start < source.keys.count; start += kKeys, ++b) {
        const int64_t keys = std::min(kKeys, source.keys.count - start);
        float* scores = row.scores.get();
        at::native::cpublas::brgemm(rows, keys, width, p_.queries.token_stride, keys, kKeys, false, q,
                                    head.keys[s].data() + b * paired<T>(width) * kKeys, scores,
                                    !std::is_same_v<T, float>);
        T* probabilities;
        if constexpr (std::is_same_v<T, float>) probabilities = scores;
        else probabilities = row.rounded.get();
        for (int64_t r = 0; r < rows; ++r) {
          const float before = row.maximum[r], own = largest(scores + r * kKeys, keys, factor_);
          const float now = std::max(before, own);
          if (now != before && (s > 0 || b > 0)) {
            const float shrink = std::exp2(before - now);
            for (int64_t t = 0; t <= s; ++t) {
              row.sums[r * p_.sources + t] *= shrink;
              if (t < s || b > 0) scale_row(row.outs[t].get() + r * p_.source[t].values.width, p_.source[t].values.width, shrink);
            }
          }
          row.maximum[r] = now;
          row.sums[r * p_.sources + s] +=
              exponentials<T>(scores + r * kKeys, keys, factor_, own, now, probabilities + r * kKeys);
        }
        at::native::cpublas::brgemm(rows, columns, paired<T>(keys), kKeys, columns, columns, b > 0, probabilities,
                                    head.values[s].data() + b * kKeys * columns, row.outs[s].get(),
                                    !std::is_same_v<T, float>);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t query = first_row + r, place = index * p_.queries.count + query;
      float total = 0;
      for (int64_t s = 0; s < p_.sources; ++s) total += row.sums[r * p_.sources + s];
      p_.lse[place] = (row.maximum[r] + std::log2(total)) * kLn2;
      for (int64_t s = 0; s < p_.sources; ++s) {
        p_.weights[place * p_.sources + s] = row.sums[r * p_.sources + s] / total;
        const int64_t columns = p_.source[s].values.width;
        T* out = static_cast<T*>(p_.source[s].out) + ((film * p_.queries.count + query) * p_.heads + number) * columns;
        store_row<T>(row.outs[s].get() + r * columns, columns, 1 / total, out);
      }
    }
  }
};

}  // namespace

// 0 where it is done; 1 where this PyTorch has no such products for the processor, or the compiler was
// not told of bf16; 2 where memory ran out.
extern "C" int hmc_fast_attention(const Problem* problem) {
  try {
    if (!problem->is_bf16) {
      Attention<float>(*problem).run();
      return 0;
    }
#ifdef __AVX512BF16__
    Attention<c10::BFloat16>(*problem).run();
    return 0;
#else
    return 1;
#endif
  } catch (const std::bad_alloc&) {
    return 2;
  } catch (const std::exception&) {
    return 1;
  }
}
