// The backward pass: probabilities recomputed from lse, and every gradient summed in one order.
//
// With P = exp(S - lse), dP = dO V^T and delta = sum_s (dO_s . O_s + dw_s w_s), every score receives
// dS_s = P_s (dP_s + dw_s + dlse - delta). All blocks are held by keys, [keys, queries]: so P^T and dS^T
// are left factors of dV and dK as they are, and dS^T is the right one of dQ^T.
#pragma once

#include "blocks.h"

namespace hmc_fast {

// Of a block of scores. On a core with 1 MiB of L2, 128 to 512 of either are within a tenth of this.
constexpr int64_t kMostQueries = 256, kMostKeys = 256;
constexpr float kNone = -200;  // no number of fp32 is as small as 2 to this power
constexpr int64_t kSplits = 8;  // of the keys at most; each sums its own share of dQ

struct DifferentiatedSource {
  Tokens keys, values, outs, d_outs;
  void *d_keys, *d_values;  // as keys and values, without gaps
};

struct BackwardProblem {
  int64_t is_bf16, batch, heads, sources;
  float scale;
  Tokens queries;
  const DifferentiatedSource* source;
  void* d_queries;                                  // as the queries, without gaps
  const float *lse, *weights, *d_lse, *d_weights;  // [B, H, M] and [B, H, M, S]
};

// `from` [rows, width], times `factor`, as tokens of one head.
template <typename T>
void store_rows(const float* from, int64_t rows, int64_t width, float factor, T* to, int64_t token_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) to[r * token_stride + c] = static_cast<T>(from[r * width + c] * factor);
}

template <typename T>
float dot(const T* a, const T* b, int64_t count) {
  float lanes[kVector] = {};
  int64_t i = 0;
  for (; i + kVector <= count; i += kVector)
    for (int64_t j = 0; j < kVector; ++j) lanes[j] += static_cast<float>(a[i + j]) * static_cast<float>(b[i + j]);
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += static_cast<float>(a[i]) * static_cast<float>(b[i]);
  return _mm512_reduce_add_ps(_mm512_loadu_ps(lanes));
}

template <typename T>
class Differentiation {
 public:
  explicit Differentiation(const BackwardProblem& problem) : p_(problem), factor_(problem.scale / kLn2) {
    rows_ = evenly(p_.queries.count, kMostQueries);
    blocks_ = ceil_div(p_.queries.count, rows_);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const int64_t count = p_.source[s].keys.count, step = evenly(count, kMostKeys);
      for (int64_t start = 0; start < count; start += step) key_blocks_.push_back({s, start, std::min(step, count - start)});
      keys_ = std::max(keys_, step);
      width_ = std::max(width_, p_.source[s].values.width);
    }
    splits_ = std::min<int64_t>(key_blocks_.size(), kSplits);
    int64_t halves = 2 * p_.queries.width, floats = splits_ * p_.queries.width + 1 + 2 * p_.sources;
    for (int64_t s = 0; s < p_.sources; ++s) halves += 2 * p_.source[s].values.width;
    const int64_t bytes = padded() * (halves * sizeof(T) + floats * sizeof(float));
    together_ = heads_at_once(4, splits_, bytes, p_.batch * p_.heads);
  }

  void run() const {
    const int64_t in_all = p_.batch * p_.heads;
    std::vector<Head> heads;
    for (int64_t i = 0; i < together_; ++i) heads.emplace_back(*this);
    for (int64_t start = 0; start < in_all; start += together_) {
      const int64_t count = std::min(together_, in_all - start);
      at::parallel_for(0, count * blocks_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) prepare(start + i / blocks_, i % blocks_, heads[i / blocks_]);
      });
      at::parallel_for(0, count * splits_, 1, [&](int64_t begin, int64_t end) {
        Memory memory(*this);
        for (int64_t i = begin; i < end; ++i) differentiate(start + i / splits_, i % splits_, heads[i / splits_], memory);
        release<T>();
      });
      at::parallel_for(0, count * blocks_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) sum_splits(start + i / blocks_, i % blocks_, heads[i / blocks_]);
      });
    }
  }

 private:
  struct Keys {  // of one block
    int64_t source, start, count;
  };

  struct Head {  // what all splits of a head share, by blocks of queries
    explicit Head(const Differentiation& d)
        : queries(d.padded() * d.p_.queries.width),
          turned_queries(d.padded() * d.p_.queries.width),
          lse(d.padded()),
          terms(d.padded() * d.p_.sources),
          floors(d.padded() * d.p_.sources),
          d_queries(d.splits_ * d.padded() * d.p_.queries.width) {
      for (int64_t s = 0; s < d.p_.sources; ++s) {
        d_outs.emplace_back(d.padded() * d.p_.source[s].values.width);
        turned_d_outs.emplace_back(d.padded() * d.p_.source[s].values.width);
      }
    }
    Block<T> queries, turned_queries;  // [rows, Dqk] and [Dqk, rows]
    std::vector<Block<T>> d_outs, turned_d_outs;
    Block<float> lse;            // [rows], in units of ln 2
    Block<float> terms, floors;  // [S, rows]
    Block<float> d_queries;      // of each split, [Dqk, rows]
  };

  struct Memory {  // of one thread
    explicit Memory(const Differentiation& d)
        : scores(d.keys_ * d.rows_),
          d_scores(d.keys_ * d.rows_),
          probabilities(is_half<T> ? d.keys_ * d.rows_ : 0),
          factors(is_half<T> ? d.keys_ * d.rows_ : 0),
          pairs(is_half<T> ? d.keys_ * d.rows_ : 0),
          keys(d.keys_ * d.p_.queries.width),
          turned_keys(d.keys_ * d.p_.queries.width),
          values(d.keys_ * d.width_),
          d_keys(d.keys_ * d.p_.queries.width),
          d_values(d.keys_ * d.width_) {}
    Block<float> scores, d_scores;           // [keys, rows]
    Block<T> probabilities, factors, pairs;  // the same rounded; `pairs` of d_scores as a right factor
    Block<T> keys, turned_keys, values;
    Block<float> d_keys, d_values;
  };

  const BackwardProblem& p_;
  float factor_;  // scores are in units of ln 2
  std::vector<Keys> key_blocks_;
  int64_t rows_, blocks_, splits_, together_, keys_ = 0, width_ = 0;

  static int64_t evenly(int64_t count, int64_t most) {  // a multiple of a register
    return ceil_div(ceil_div(count, ceil_div(count, most)), kVector) * kVector;
  }
  int64_t padded() const { return blocks_ * rows_; }
  int64_t rows_of(int64_t block) const { return std::min(rows_, p_.queries.count - block * rows_); }

  void prepare(int64_t index, int64_t block, const Head& head) const {
    const int64_t film = index / p_.heads, number = index % p_.heads, width = p_.queries.width;
    const int64_t start = block * rows_, rows = rows_of(block), place = index * p_.queries.count + start;
    const T* q = p_.queries.of<T>(film, number, start);
    pack_rows(q, rows, width, p_.queries.token_stride, head.queries + start * width);
    pack_columns(q, rows, width, p_.queries.token_stride, head.turned_queries + start * width);
    for (int64_t s = 0; s < p_.sources; ++s) {
      const Tokens& d_outs = p_.source[s].d_outs;
      const T* from = d_outs.of<T>(film, number, start);
      pack_rows(from, rows, d_outs.width, d_outs.token_stride, head.d_outs[s] + start * d_outs.width);
      pack_columns(from, rows, d_outs.width, d_outs.token_stride, head.turned_d_outs[s] + start * d_outs.width);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float *w = p_.weights + (place + r) * p_.sources, *dw = p_.d_weights + (place + r) * p_.sources;
      float delta = 0;
      for (int64_t s = 0; s < p_.sources; ++s) {
        const Tokens &d_outs = p_.source[s].d_outs, &outs = p_.source[s].outs;
        const T *d_out = d_outs.of<T>(film, number, start + r), *out = outs.of<T>(film, number, start + r);
        delta += dot(d_out, out, outs.width) + w[s] * dw[s];
      }
      *(head.lse + start + r) = p_.lse[place + r] / kLn2;
      for (int64_t s = 0; s < p_.sources; ++s) {
        *(head.terms + s * padded() + start + r) = dw[s] + p_.d_lse[place + r] - delta;
        *(head.floors + s * padded() + start + r) = w[s] > std::exp2(kNear) ? kFloor : kNone;
      }
    }
  }

  void differentiate(int64_t index, int64_t split, const Head& head, const Memory& m) const {
    const int64_t count = key_blocks_.size(), begin = split * count / splits_, end = (split + 1) * count / splits_;
    for (int64_t i = begin; i < end; ++i) attend(index, key_blocks_[i], split, i == begin, head, m);
  }

  // All gradients that go through one block of keys.
  void attend(int64_t index, const Keys& block, int64_t split, bool is_first, const Head& head, const Memory& m) const {
    const int64_t film = index / p_.heads, number = index % p_.heads, width = p_.queries.width, s = block.source;
    const DifferentiatedSource& source = p_.source[s];
    const int64_t columns = source.values.width, keys = block.count, turned = paired<T>(keys);
    const T* k = source.keys.of<T>(film, number, block.start);
    for (int64_t c = 0; c < keys; ++c) {
      std::memcpy(m.keys + c * width, k + c * source.keys.token_stride, width * sizeof(T));
      std::memcpy(m.values + c * columns, source.values.of<T>(film, number, block.start + c), columns * sizeof(T));
    }
    for (int64_t d = 0; d < width; ++d) {
      T* row = m.turned_keys + d * turned;
      for (int64_t c = 0; c < keys; ++c) row[c] = *(m.keys + c * width + d);
      if (turned > keys) row[keys] = 0;
    }
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t start = b * rows_, rows = rows_of(b);
      multiply(keys, rows, width, m.keys.begin(), width, head.turned_queries + start * width, m.scores.begin(), rows_, false);
      multiply(keys, rows, columns, m.values.begin(), columns, head.turned_d_outs[s] + start * columns,
               m.d_scores.begin(), rows_, false);
      score_gradients(s, start, rows, keys, head, m);
      const T *probabilities, *d_scores, *pairs;
      if constexpr (is_half<T>) {
        probabilities = m.probabilities.begin(), d_scores = m.factors.begin(), pairs = m.pairs.begin();
      } else {
        probabilities = m.scores.begin(), d_scores = pairs = m.d_scores.begin();
      }
      multiply(keys, columns, rows, probabilities, rows_, head.d_outs[s] + start * columns, m.d_values.begin(), columns, b > 0);
      multiply(keys, width, rows, d_scores, rows_, head.queries + start * width, m.d_keys.begin(), width, b > 0);
      float* d_queries = head.d_queries + (split * padded() + start) * width;
      at::native::cpublas::brgemm(width, rows, turned, turned, rows_, rows_, !is_first, m.turned_keys.begin(), pairs,
                                  d_queries, is_half<T>);
    }
    const int64_t token = (film * source.keys.count + block.start) * p_.heads + number;
    store_rows(m.d_keys.begin(), keys, width, p_.scale, static_cast<T*>(source.d_keys) + token * width, p_.heads * width);
    store_rows(m.d_values.begin(), keys, columns, 1, static_cast<T*>(source.d_values) + token * columns, p_.heads * columns);
  }

  // Scores become probabilities, and gradients of these gradients of scores.
  void score_gradients(int64_t s, int64_t start, int64_t rows, int64_t keys, const Head& head, const Memory& m) const {
    const __m512 by = _mm512_set1_ps(factor_);
    const float *lse = head.lse + start, *terms = head.terms + s * padded() + start;
    const float* floors = head.floors + s * padded() + start;
    constexpr int64_t step = is_half<T> ? 2 : 1;
    for (int64_t c = 0; c < keys; c += step)
      for (int64_t r = 0; r < rows; r += kVector) {
        const __mmask16 there = first(rows - r);
        const __m512 less = _mm512_maskz_loadu_ps(there, lse + r), floor = _mm512_maskz_loadu_ps(there, floors + r);
        const __m512 term = _mm512_maskz_loadu_ps(there, terms + r);
        __m512 p[step], d[step];
        for (int64_t i = 0; i < step; ++i) {
          const int64_t place = (c + i) * rows_ + r;
          const __mmask16 these = c + i < keys ? there : 0;
          const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(these, m.scores + place), by, less);
          p[i] = _mm512_maskz_mov_ps(these, exp2_of(x, floor));
          d[i] = _mm512_mul_ps(p[i], _mm512_add_ps(_mm512_maskz_loadu_ps(these, m.d_scores + place), term));
        }
        if constexpr (!is_half<T>) {
          _mm512_storeu_ps(m.scores + c * rows_ + r, p[0]);
          _mm512_storeu_ps(m.d_scores + c * rows_ + r, d[0]);
        } else {
#ifdef __AVX512BF16__
          const __m256i factors[] = {to_bf16(d[0]), to_bf16(d[1])};
          for (int64_t i = 0; i < step && c + i < keys; ++i) {
            const int64_t place = (c + i) * rows_ + r;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(m.probabilities + place), to_bf16(p[i]));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(m.factors + place), factors[i]);
          }
          _mm512_storeu_si512(m.pairs + c * rows_ + 2 * r, interleaved(factors[0], factors[1]));
#endif
        }
      }
  }

  void sum_splits(int64_t index, int64_t block, const Head& head) const {
    const int64_t film = index / p_.heads, number = index % p_.heads, width = p_.queries.width;
    const int64_t start = block * rows_, rows = rows_of(block);
    T* to = static_cast<T*>(p_.d_queries) + ((film * p_.queries.count + start) * p_.heads + number) * width;
    for (int64_t d = 0; d < width; ++d)
      for (int64_t r = 0; r < rows; ++r) {
        float sum = 0;
        for (int64_t split = 0; split < splits_; ++split)
          sum += *(head.d_queries + (split * padded() + start) * width + d * rows_ + r);
        to[r * p_.heads * width + d] = static_cast<T>(sum * p_.scale);
      }
  }
};

}  // namespace hmc_fast
