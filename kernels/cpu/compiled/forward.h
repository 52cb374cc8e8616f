// The forward pass, one block of scores at a time (Dao 2023, FlashAttention-2).
#pragma once

#include "blocks.h"

namespace hmc_fast {

constexpr int64_t kKeys = 512;  // of a block of scores

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

// Exponentials of one row of scores, whose largest is `own`, against `maximum`, written to `to`;
// returns their sum.
template <typename T>
float exponentials(const float* scores, int64_t keys, float factor, float own, float maximum, T* to) {
  if (maximum == -std::numeric_limits<float>::infinity()) maximum = 0;  // as all scores so far
  const __m512 by = _mm512_set1_ps(factor), less = _mm512_set1_ps(maximum);
  const __m512 floor = _mm512_set1_ps(own - maximum > kNear ? kFloor : kLeast);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < keys; c += kVector) {
    const __mmask16 there = first(keys - c);
    __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(there, scores + c), by, less);
    x = _mm512_maskz_mov_ps(there, exp2_of(x, floor));
    sum = _mm512_add_ps(sum, x);
    if constexpr (!is_half<T>) {
      _mm512_mask_storeu_ps(to + c, there, x);
    } else {  // a block's memory ends behind a whole register
#ifdef __AVX512BF16__
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), to_bf16(x));
#endif
    }
  }
  return _mm512_reduce_add_ps(sum);
}

inline float largest(const float* scores, int64_t keys, float factor) {
  const __m512 by = _mm512_set1_ps(factor), least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 found = least;
  for (int64_t c = 0; c < keys; c += kVector) {
    const __mmask16 there = first(keys - c);
    const __m512 x = _mm512_mask_mul_ps(least, there, _mm512_maskz_loadu_ps(there, scores + c), by);
    found = _mm512_max_ps(x, found);
  }
  return _mm512_reduce_max_ps(found);
}

inline void scale_row(float* row, int64_t width, float factor) {
  const __m512 by = _mm512_set1_ps(factor);
  for (int64_t c = 0; c < width; c += kVector) {
    const __mmask16 there = first(width - c);
    _mm512_mask_storeu_ps(row + c, there, _mm512_mul_ps(_mm512_maskz_loadu_ps(there, row + c), by));
  }
}

template <typename T>
class Attention {
 public:
  explicit Attention(const Problem& problem) : p_(problem), factor_(problem.scale / kLn2) {
    rows_ = p_.queries.count >= 8192 ? 256 : 64;
    blocks_ = ceil_div(p_.queries.count, rows_);
    int64_t numbers = 0;
    for (int64_t s = 0; s < p_.sources; ++s)
      numbers += packed_keys(s) * (paired<T>(p_.queries.width) + p_.source[s].values.width);
    together_ = heads_at_once(8, blocks_, numbers * sizeof(T), p_.batch * p_.heads);
  }

  void run() const {
    const int64_t in_all = p_.batch * p_.heads;
    std::vector<Packed> packed(together_);
    for (Packed& head : packed)
      for (int64_t s = 0; s < p_.sources; ++s) {
        head.keys.emplace_back(packed_keys(s) * paired<T>(p_.queries.width));
        head.values.emplace_back(packed_keys(s) * p_.source[s].values.width);
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
        Memory memory(p_, rows_);
        for (int64_t i = begin; i < end; ++i) attend(start + i / blocks_, i % blocks_, packed[i / blocks_], memory);
        release<T>();
      });
    }
  }

 private:
  struct Packed {  // of a head and every source, the blocks of keys and of values
    std::vector<Block<T>> keys, values;
  };

  struct Memory {  // of one thread
    Memory(const Problem& p, int64_t rows)
        : scores(rows * kKeys), rounded(is_half<T> ? rows * kKeys : 0), maximum(rows), sums(rows * p.sources) {
      for (int64_t s = 0; s < p.sources; ++s) outs.emplace_back(rows * p.source[s].values.width);
    }
    Block<float> scores;
    Block<T> rounded;
    std::vector<Block<float>> outs;
    std::vector<float> maximum, sums;
  };

  const Problem& p_;
  float factor_;  // scores are in units of ln 2
  int64_t rows_, blocks_, together_;

  int64_t packed_keys(int64_t s) const { return ceil_div(p_.source[s].keys.count, kKeys) * kKeys; }

  void pack_block(int64_t index, int64_t s, int64_t block, Packed& head) const {
    const Tokens &k = p_.source[s].keys, &v = p_.source[s].values;
    const int64_t film = index / p_.heads, number = index % p_.heads, first_key = block * kKeys;
    const int64_t count = std::min(kKeys, k.count - first_key);
    pack_columns(k.of<T>(film, number, first_key), count, k.width, k.token_stride,
                 head.keys[s] + first_key * paired<T>(k.width));
    pack_rows(v.of<T>(film, number, first_key), count, v.width, v.token_stride, head.values[s] + first_key * v.width);
  }

  void attend(int64_t index, int64_t block, const Packed& head, Memory& row) const {
    const int64_t film = index / p_.heads, number = index % p_.heads, width = p_.queries.width;
    const int64_t first_row = block * rows_, rows = std::min(rows_, p_.queries.count - first_row);
    const T* q = p_.queries.of<T>(film, number, first_row);
    std::fill(row.maximum.begin(), row.maximum.end(), -std::numeric_limits<float>::infinity());
    std::fill(row.sums.begin(), row.sums.end(), 0.0f);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const Source& source = p_.source[s];
      const int64_t columns = source.values.width;
      for (int64_t start = 0; start < source.keys.count; start += kKeys) {
        const int64_t keys = std::min(kKeys, source.keys.count - start);
        float* scores = row.scores.begin();
        multiply(rows, keys, width, q, p_.queries.token_stride, head.keys[s] + start * paired<T>(width), scores, kKeys,
                 false);
        T* probabilities;
        if constexpr (is_half<T>) probabilities = row.rounded.begin();
        else probabilities = scores;
        for (int64_t r = 0; r < rows; ++r) {
          const float before = row.maximum[r], own = largest(scores + r * kKeys, keys, factor_);
          const float now = std::max(before, own);
          if (now != before && (s > 0 || start > 0)) rescale(row, r, s, start > 0, std::exp2(before - now));
          row.maximum[r] = now;
          row.sums[r * p_.sources + s] +=
              exponentials(scores + r * kKeys, keys, factor_, own, now, probabilities + r * kKeys);
        }
        multiply(rows, columns, keys, probabilities, kKeys, head.values[s] + start * columns, row.outs[s].begin(),
                 columns, start > 0);
      }
    }
    store(index, first_row, rows, row);
  }

  // What row `r` has of the sources before `s`, and of this one where it `has_begun`.
  void rescale(Memory& row, int64_t r, int64_t s, bool has_begun, float factor) const {
    for (int64_t t = 0; t <= s; ++t) {
      const int64_t columns = p_.source[t].values.width;
      row.sums[r * p_.sources + t] *= factor;
      if (t < s || has_begun) scale_row(row.outs[t] + r * columns, columns, factor);
    }
  }

  void store(int64_t index, int64_t first_row, int64_t rows, const Memory& row) const {
    const int64_t film = index / p_.heads, number = index % p_.heads;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t query = first_row + r, place = index * p_.queries.count + query;
      const float* sums = row.sums.data() + r * p_.sources;
      float total = 0;
      for (int64_t s = 0; s < p_.sources; ++s) total += sums[s];
      p_.lse[place] = (row.maximum[r] + std::log2(total)) * kLn2;
      for (int64_t s = 0; s < p_.sources; ++s) {
        p_.weights[place * p_.sources + s] = sums[s] / total;
        const int64_t columns = p_.source[s].values.width;
        T* out = static_cast<T*>(p_.source[s].out) + ((film * p_.queries.count + query) * p_.heads + number) * columns;
        const float* from = row.outs[s] + r * columns;
        for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<T>(from[c] * (1 / total));
      }
    }
  }
};

}  // namespace hmc_fast
