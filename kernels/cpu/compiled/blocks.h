// What both passes need: tensors, blocks as oneDNN wants them, exponentials, memory of a thread.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace hmc_fast {

constexpr int64_t kVector = 16;  // fp32 numbers in a register
constexpr float kLn2 = 0.6931471805599453f;
// Exponents below these count as zero, so that products are no denormal numbers, which take many times
// as long: 2^-87 is nothing beside a number of the same row. A row with none above 2^-29 counts only
// beside other sources, and its few that are larger than denormal are kept.
constexpr float kFloor = -87, kNear = -29, kLeast = -126;

struct Tokens {  // of one tensor [B, N, H, D] whose last axis has no gaps; strides in elements
  const void* data;
  int64_t count, width, batch_stride, token_stride, head_stride;

  template <typename T>
  const T* of(int64_t film, int64_t head, int64_t token = 0) const {
    return static_cast<const T*>(data) + film * batch_stride + head * head_stride + token * token_stride;
  }
};

// Of packed heads that wait for their turn, bytes a thread; at least one head is packed.
constexpr int64_t kPackedBytes = int64_t{1} << 26;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers of a block, in memory of its own that begins a cache line and ends behind a whole register.
template <typename N>
class Block {
 public:
  explicit Block(int64_t count) {
    const int64_t bytes = ceil_div(count * sizeof(N), 64) * 64 + 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    memory_.reset(static_cast<N*>(memory));
#ifdef HMC_FAST_POISON  // for tests: what is read before it is written shows
    std::memset(memory, 0xff, bytes);
#endif
  }
  N* operator+(int64_t offset) const { return memory_.get() + offset; }
  N* begin() const { return memory_.get(); }

 private:
  std::unique_ptr<N, decltype(&std::free)> memory_{nullptr, &std::free};
};

// How many of `in_all` heads are packed at once: so that every thread has `tasks` of them, where a head
// makes `tasks_a_head`, as memory allows.
inline int64_t heads_at_once(int64_t tasks, int64_t tasks_a_head, int64_t bytes_a_head, int64_t in_all) {
  const int64_t threads = at::get_num_threads();
  const int64_t most = std::max<int64_t>(1, threads * kPackedBytes / bytes_a_head);
  return std::clamp<int64_t>(ceil_div(tasks * threads, tasks_a_head), 1, std::min(in_all, most));
}

template <typename T>
constexpr bool is_half = !std::is_same_v<T, float>;

template <typename T>
int64_t paired(int64_t count) {  // bf16 is multiplied in pairs of rows
  return is_half<T> ? ceil_div(count, 2) * 2 : count;
}

// c [rows, columns] = a b, or c + a b where it `adds`; b as `pack_rows` or `pack_columns` leave it.
template <typename T>
void multiply(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t a_stride, const T* b, float* c,
              int64_t c_stride, bool adds) {
  at::native::cpublas::brgemm(rows, columns, paired<T>(inner), a_stride, columns, c_stride, adds, a, b, c, is_half<T>);
}

template <typename T>
void release() {  // a thread's hold on the processor's tiles, if it has any
  at::native::cpublas::brgemm_release(is_half<T>);
}

inline __mmask16 first(int64_t count) { return count >= kVector ? 0xffff : (1u << count) - 1; }

// Pairs (a, b) of 16 halves each.
inline __m512i interleaved(__m256i a, __m256i b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

// [rows, columns] as the right factor of a product over rows.
template <typename T>
void pack_rows(const T* from, int64_t rows, int64_t columns, int64_t row_stride, T* to) {
  if constexpr (!is_half<T>) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * columns, from + i * row_stride, columns * sizeof(T));
  } else {
    for (int64_t i = 0; i < rows; i += 2)
      for (int64_t j = 0; j < columns; j += kVector) {
        const __mmask16 there = first(columns - j);
        const T* pair = from + i * row_stride + j;
        const __m256i a = _mm256_maskz_loadu_epi16(there, pair);
        const __m256i b = i + 1 < rows ? _mm256_maskz_loadu_epi16(there, pair + row_stride) : _mm256_setzero_si256();
        _mm512_mask_storeu_epi32(to + i * columns + 2 * j, there, interleaved(a, b));
      }
  }
}

// The same of [columns, rows], whose halves are even in number: words of four bytes are turned.
template <typename T>
void pack_columns(const T* from, int64_t columns, int64_t rows, int64_t column_stride, T* to) {
  constexpr int64_t in_word = 4 / sizeof(T);
  const __m512i counting = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(counting, _mm512_set1_epi32(column_stride * sizeof(T)));
  for (int64_t j = 0; j < columns; j += kVector) {
    const __mmask16 there = first(columns - j);
    for (int64_t i = 0; i < rows; i += in_word) {
      const __m512i words =
          _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places, from + j * column_stride + i, 1);
      _mm512_mask_storeu_epi32(to + i * columns + j * in_word, there, words);
    }
  }
}

// 2^x to one unit in the last place for x <= 0: a Taylor series of 2^f, |f| <= 1/2.
inline __m512 exp2_of(__m512 x, __m512 floor) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5252734e-5f);
  for (float c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
  const __mmask16 counts = _mm512_cmp_ps_mask(x, floor, _CMP_NLT_UQ);  // NaN stays
  return _mm512_maskz_scalef_ps(counts, y, whole);
}

#ifdef __AVX512BF16__
inline __m256i to_bf16(__m512 x) {
  const __m256bh halves = _mm512_cvtneps_pbh(x);
  return reinterpret_cast<const __m256i&>(halves);
}
#endif

}  // namespace hmc_fast
