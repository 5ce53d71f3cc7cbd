// The CPU path of tally.py and triggers.py: one loop over memory that writes what the down projection reads
// and tallies the neurons while the values are in registers. Compiled once by compiled.py, called by ctypes.
//
// Formulas, shapes and letters as in tally.py: B rows, T tokens a row, F neurons.
//
// The same bits for any number of threads: every neuron belongs to one thread and its tokens are added in
// order, in float and int32 over kTile tokens of a row and then to float64 and int64. Sixteen additions in
// float are off by at most 16 * 2^-24 < 1e-6 of the sum of |x|. Built without -ffast-math, and without
// contraction, which would add act*up to a sum before it is rounded.
//
// Written with the vector extension that GCC and Clang share, so that the accumulators of as many neurons as a register
// holds stay in registers over a tile; it compiles for any CPU, and gives the same bits whatever the register's width.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

// Neurons side by side: as many floats as a register holds. Of longer vectors GCC takes comparisons apart, number by
// number: 4 times the time on AVX2.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kTile = 16;
// 16 tokens x 3 arrays are more streams than hardware prefetchers follow. Asking this far ahead in each row:
// 0.66 of the time, bf16, everything, 4096 x 1408, Sapphire Rapids; 64 to 256 bytes are alike. Tiles of 64
// tokens take 1.5 times as long.
constexpr int kAheadBytes = 128;
constexpr int64_t kLine = 32;  // neurons: threads meet at cache lines of h

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));

template <class V, class E>
INLINE V load(const E* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class E>
INLINE void store(E* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

INLINE Floats as_floats(Words w) { return (Floats)w; }
INLINE Words as_words(Floats f) { return (Words)f; }
INLINE Floats absolute(Floats f) { return as_floats(as_words(f) & 0x7fffffffu); }

// Each dtype: kLanes elements as floats (exact), and floats rounded to the nearest, ties to even, NaN kept.

struct Float32 {
  typedef float Element;
  static INLINE Floats widen(const Element* from) { return load<Floats>(from); }
  static INLINE Floats round(Floats f) { return f; }
  static INLINE void narrow(Element* to, Floats f) { store(to, f); }
};

struct BFloat16 {
  typedef uint16_t Element;
  static INLINE Floats widen(const Element* from) {
    return as_floats(__builtin_convertvector(load<Halves>(from), Words) << 16);
  }
  static INLINE Floats round(Floats f) {
    const Words w = as_words(f);
    const Words up = w + 0x7fffu + ((w >> 16) & 1u);
    return as_floats((f == f ? up : w | 0x400000u) & 0xffff0000u);
  }
  static INLINE void narrow(Element* to, Floats rounded) {
    store(to, __builtin_convertvector(as_words(rounded) >> 16, Halves));
  }
};

struct Float16 {
  typedef uint16_t Element;
  static INLINE Floats widen(const Element* from) {
    const Words bits = __builtin_convertvector(load<Halves>(from), Words);
    const Words magnitude = bits & 0x7fffu;
    const Words normal = (magnitude << 13) + (112u << 23);
    const Floats subnormal = __builtin_convertvector((Ints)magnitude, Floats) * 0x1p-24f;
    const Words unsigned_ = (magnitude >= 0x7c00u)  ? (magnitude << 13) | 0x7f800000u
                            : (magnitude < 0x0400u) ? as_words(subnormal)
                                                    : normal;
    return as_floats(unsigned_ | ((bits & 0x8000u) << 16));
  }
  static INLINE Floats round(Floats f) {
    const Words w = as_words(f), sign = w & 0x80000000u, magnitude = w & 0x7fffffffu;
    const Words normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & 0xffffe000u;
    // Adding 0.5 leaves 24 bits below it: the spacing of subnormal halves. 65520 and above round to infinity.
    const Words subnormal = as_words((as_floats(magnitude) + 0.5f) - 0.5f);
    const Words infinity = Words{} + 0x7f800000u;
    const Words finite = magnitude < (113u << 23) ? subnormal : magnitude >= 0x477ff000u ? infinity : normal;
    return as_floats(sign | (magnitude > 0x7f800000u ? magnitude | 0x400000u : finite));
  }
  static INLINE void narrow(Element* to, Floats rounded) {
    const Words w = as_words(rounded), magnitude = w & 0x7fffffffu;
    const Ints subnormal = __builtin_convertvector(as_floats(magnitude) * 0x1p24f, Ints);
    const Words bits = (magnitude >= 0x7f800000u)     ? (magnitude >> 13 & 0x3ffu) | 0x7c00u
                       : (magnitude < (113u << 23)) ? (Words)subnormal
                                                      : (magnitude - (112u << 23)) >> 13;
    store(to, __builtin_convertvector(bits | (w >> 16 & 0x8000u), Halves));
  }
};

}  // namespace

// The table of statistics.py: compiled.py compares types, names and order with it.
#define STATISTICS(X)                                                                              \
  X(int64_t, active)                                                                               \
  X(int64_t, active_special)                                                                       \
  X(double, activation_sum)                                                                        \
  X(double, coefficient_sum)                                                                       \
  X(double, coefficient_sum_absolute)                                                              \
  X(double, coefficient_sum_squares)                                                               \
  X(float, coefficient_max)                                                                        \
  X(float, coefficient_min)

#define POINTER(type, name) type* name;
#define ARRAY(type, name) type name[kLanes] = {};
#define ADDRESS(type, name) name,
#define ADVANCED(type, name) job.name + neuron,
#define COPY(type, name) copy_pair(name, sums.name);
#define SPELLED(type, name) #type " " #name ";"

// What compiled.py calls a Job; field by field the same.
struct Job {
  int64_t rows, tokens, neurons;
  const void* pre;  // element (b, t, f) at b * pre_row + t * pre_token + f
  int64_t pre_row, pre_token;
  const void* up;  // null in a plain FFN
  int64_t up_row, up_token;
  const float* table;  // activation of each of the 65,536 elements of a 16-bit dtype; or null, and
  const void* activation;  // [B, T, F] contiguous, in the model's dtype; may be `out`
  void* out;  // [B, T, F] contiguous; null in a plain FFN whose activation is given
  const uint8_t* kind;  // [B, T]: 0 pad, 1 token, 2 special token, 3 token of a repeat
  STATISTICS(POINTER)  // [F] each
  float* row_value;  // [B, F]
  int32_t* row_position;
  // Null, or by row what a mixture of experts makes of a batch (`Runs` in routing.py): where its tokens begin among all,
  // how many they are, and the first of its expert's neurons in the sums, which are [E * F] then. `pre_row` and `up_row`
  // say nothing.
  const int64_t *run_first, *run_tokens, *run_neuron;
  const int64_t* row;  // of each token then: which of the rows of `pre`, `up`, `activation` and `out` it is
  const float* weight;  // null, or the routing weight of each token, for
  double* weighted_coefficient_sum;
  int32_t dtype;  // 0 float32, 1 bfloat16, 2 float16
  int32_t statistics;  // 1 counts, 2 and moments, 3 and row maxima
  int32_t threads;
};

namespace {

// One tile: up to kTile tokens of a row by kLanes neurons. Pointers are at its first element.
template <class Element>
struct Tile {
  const Element *pre, *up, *activation;
  Element* out;
  int64_t pre_token, up_token, activation_token, out_token;
  const float* table;
  const uint8_t* kind;
  const int64_t* row;  // null where the tokens follow one another
  const float* weight;
  int num_tokens;
  int32_t first_position;
};

// Where the sums of kLanes neurons are kept.
struct Sums {
  STATISTICS(POINTER)
  float* row_value;
  int32_t* row_position;
  double* weighted_coefficient_sum;
};

INLINE Floats gather(const float* table, Words index) {
#if defined(__AVX512F__)  // GCC 12 makes 16 loads and 15 inserts of the loop below: 1.4 times the whole kernel's time
  return (Floats)_mm512_i32gather_ps((__m512i)index, table, sizeof(float));
#elif defined(__AVX2__)
  return (Floats)_mm256_i32gather_ps(table, (__m256i)index, sizeof(float));
#else
  Floats f;
  for (int i = 0; i < kLanes; i++) f[i] = table[index[i]];
  return f;
#endif
}

INLINE bool any(Ints mask) {
  int32_t lanes = 0;
  for (int i = 0; i < kLanes; i++) lanes |= mask[i];
  return lanes != 0;
}

template <class V, class W, class E>
INLINE void add(E* to, W partial) {
  store(to, load<V>(to) + __builtin_convertvector(partial, V));
}

// The moments of a tile in double, of those neurons alone whose float sums left the range of float.
__attribute__((noinline, cold)) void add_wide(const Sums& sums, Ints is_lost, const Floats (&partial)[4],
                                              const Floats* activations, const Floats* coefficients,
                                              const uint8_t* kind, int num_tokens) {
  double* const to[] = {sums.activation_sum, sums.coefficient_sum, sums.coefficient_sum_absolute,
                        sums.coefficient_sum_squares};
  for (int i = 0; i < kLanes; i++) {
    double wide[4] = {};
    for (int t = 0; t < num_tokens; t++) {
      if (!kind[t]) continue;
      const double c = coefficients[t][i];
      const double terms[] = {activations[t][i], c, c < 0 ? -c : c, c * c};
      for (int k = 0; k < 4; k++) wide[k] += terms[k];
    }
    for (int k = 0; k < 4; k++) to[k][i] += is_lost[i] ? wide[k] : partial[k][i];
  }
}

template <class Dtype, int statistics>
INLINE void tally_tile(const Tile<typename Dtype::Element>& in, const Sums& sums) {
  Floats activations[kTile], coefficients[kTile];
  Ints active = {}, special = {};
  Floats a_sum = {}, c_sum = {}, magnitude_sum = {}, square_sum = {};
  Doubles weighted_sum = {};
  Floats max, min, best;
  Ints where;
  bool has_special = false;
  if (statistics >= 2) max = load<Floats>(sums.coefficient_max), min = load<Floats>(sums.coefficient_min);
  if (statistics >= 3) best = load<Floats>(sums.row_value), where = load<Ints>(sums.row_position);

  for (int t = 0; t < in.num_tokens; t++) {
    constexpr int ahead = kAheadBytes / sizeof(typename Dtype::Element);
    const int64_t row = in.row ? in.row[t] : t;
    __builtin_prefetch(in.pre + row * in.pre_token + ahead);
    if (in.up) __builtin_prefetch(in.up + row * in.up_token + ahead);
    if (in.activation) __builtin_prefetch(in.activation + row * in.activation_token + ahead);
    const Floats pre = Dtype::widen(in.pre + row * in.pre_token);
    Floats a;
    if (in.table) {
      a = gather(in.table, __builtin_convertvector(load<Halves>(in.pre + row * in.pre_token), Words));
    } else {
      a = Dtype::widen(in.activation + row * in.activation_token);
    }
    const Floats c = in.up ? Dtype::round(a * Dtype::widen(in.up + row * in.up_token)) : a;
    if (in.out) Dtype::narrow(in.out + row * in.out_token, c);
    if (statistics >= 2) activations[t] = a, coefficients[t] = c;

    if (in.kind[t] == 0) continue;
    const Ints is_active = pre > 0.0f;  // -1 where true
    active -= is_active;
    if (in.kind[t] == 2) special -= is_active, has_special = true;
    if (statistics >= 2) {
      a_sum += a;
      c_sum += c;
      magnitude_sum += absolute(c);
      square_sum += c * c;
      if (in.weight) weighted_sum += __builtin_convertvector(c, Doubles) * static_cast<double>(in.weight[t]);
      max = c > max ? c : max;  // false for a NaN
      min = c < min ? c : min;
    }
    if (statistics >= 3 && in.kind[t] == 1) {
      const Ints better = c > best;  // so the first of equals stays
      best = better ? c : best;
      where = better ? Ints{} + (in.first_position + t) : where;
    }
  }

  add<Longs>(sums.active, active);
  if (has_special) add<Longs>(sums.active_special, special);
  if (statistics >= 2) {
    // The sum of magnitudes leaves the range only after that of squares.
    const Ints is_lost = (a_sum - a_sum) + (c_sum - c_sum) + (square_sum - square_sum) != 0.0f;
    if (__builtin_expect(any(is_lost), 0)) {
      add_wide(sums, is_lost, {a_sum, c_sum, magnitude_sum, square_sum}, activations, coefficients, in.kind,
               in.num_tokens);
    } else {
      add<Doubles>(sums.activation_sum, a_sum);
      add<Doubles>(sums.coefficient_sum, c_sum);
      add<Doubles>(sums.coefficient_sum_absolute, magnitude_sum);
      add<Doubles>(sums.coefficient_sum_squares, square_sum);
    }
    if (in.weight) add<Doubles>(sums.weighted_coefficient_sum, weighted_sum);
    store(sums.coefficient_max, max), store(sums.coefficient_min, min);
  }
  if (statistics >= 3) store(sums.row_value, best), store(sums.row_position, where);
}

// The last tile of a row of tiles, `n` < kLanes neurons wide: through copies of full width.
template <class Dtype, int statistics>
__attribute__((noinline)) void tally_narrow_tile(Tile<typename Dtype::Element> in, const Sums& sums, int n) {
  typedef typename Dtype::Element Element;
  Element pre[kTile][kLanes] = {}, up[kTile][kLanes] = {}, activation[kTile][kLanes] = {}, out[kTile][kLanes];
  STATISTICS(ARRAY)
  float value[kLanes] = {};
  int32_t position[kLanes] = {};
  double weighted[kLanes] = {};
  const Sums padded = {STATISTICS(ADDRESS) value, position, weighted};

  auto row = [&in](int t) { return in.row ? in.row[t] : t; };
  for (int t = 0; t < in.num_tokens; t++) {
    std::memcpy(pre[t], in.pre + row(t) * in.pre_token, n * sizeof(Element));
    if (in.up) std::memcpy(up[t], in.up + row(t) * in.up_token, n * sizeof(Element));
    if (in.activation) std::memcpy(activation[t], in.activation + row(t) * in.activation_token, n * sizeof(Element));
  }
  auto copy = [n](auto* to, const auto* from) { std::memcpy(to, from, n * sizeof *to); };
  auto each = [&](auto copy_pair) {
    STATISTICS(COPY)
    if (statistics >= 3) copy_pair(value, sums.row_value), copy_pair(position, sums.row_position);
    if (in.weight) copy_pair(weighted, sums.weighted_coefficient_sum);
  };
  each([&](auto* here, auto* there) { copy(here, there); });
  Tile<Element> tile = in;
  tile.row = nullptr;
  tile.pre = pre[0], tile.pre_token = kLanes;
  if (in.up) tile.up = up[0], tile.up_token = kLanes;
  if (in.activation) tile.activation = activation[0], tile.activation_token = kLanes;
  if (in.out) tile.out = out[0], tile.out_token = kLanes;
  tally_tile<Dtype, statistics>(tile, padded);
  each([&](auto* here, auto* there) { copy(there, here); });
  if (in.out)
    for (int t = 0; t < in.num_tokens; t++) std::memcpy(in.out + row(t) * in.out_token, out[t], n * sizeof(Element));
}

// Neurons first to end - 1: all rows and tokens, tile by tile, so that a tile's lines are still in cache when
// the neighbouring neurons come.
template <class Dtype, int statistics>
void tally_neurons(const Job& job, int64_t first, int64_t end) {
  typedef typename Dtype::Element Element;
  for (int64_t b = 0; b < job.rows; b++) {
    if (statistics >= 3) {
      std::memset(job.row_value + b * job.neurons + first, 0, (end - first) * sizeof(float));
      std::memset(job.row_position + b * job.neurons + first, 0, (end - first) * sizeof(int32_t));
    }
    const bool is_run = job.run_first;
    const int64_t first_cell = is_run ? job.run_first[b] : b * job.tokens;
    const int64_t num_tokens = is_run ? job.run_tokens[b] : job.tokens;
    const int64_t first_neuron = is_run ? job.run_neuron[b] : 0;
    for (int64_t t = 0; t < num_tokens; t += kTile) {
      const int64_t cell = first_cell + t;
      for (int64_t f = first; f < end; f += kLanes) {
        auto at = [f](const void* base, int64_t offset) {
          return base ? static_cast<const Element*>(base) + offset + f : nullptr;
        };
        const Tile<Element> tile = {
            at(job.pre, is_run ? 0 : b * job.pre_row + t * job.pre_token),
            at(job.up, is_run ? 0 : b * job.up_row + t * job.up_token),
            at(job.activation, is_run ? 0 : cell * job.neurons),
            const_cast<Element*>(at(job.out, is_run ? 0 : cell * job.neurons)),
            job.pre_token, job.up_token, job.neurons, job.neurons,
            job.table,
            job.kind + cell,
            is_run ? job.row + cell : nullptr,
            job.weight ? job.weight + cell : nullptr,
            static_cast<int>(num_tokens - t < kTile ? num_tokens - t : kTile),
            static_cast<int32_t>(t),
        };
        const int64_t r = b * job.neurons + f, neuron = first_neuron + f;
        const Sums sums = {STATISTICS(ADVANCED) job.row_value + r, job.row_position + r,
                           job.weighted_coefficient_sum ? job.weighted_coefficient_sum + neuron : nullptr};
        if (end - f >= kLanes)
          tally_tile<Dtype, statistics>(tile, sums);
        else
          tally_narrow_tile<Dtype, statistics>(tile, sums, static_cast<int>(end - f));
      }
    }
  }
}

template <class Dtype>
void tally_neurons(const Job& job, int64_t first, int64_t end) {
  if (job.statistics == 1) tally_neurons<Dtype, 1>(job, first, end);
  if (job.statistics == 2) tally_neurons<Dtype, 2>(job, first, end);
  if (job.statistics == 3) tally_neurons<Dtype, 3>(job, first, end);
}

// The OpenMP runtime that torch has loaded. Handed over by compiled.py, so that the threads are torch's own and no
// second runtime comes in, whatever the compiler: GNU's, LLVM's and Intel's all have these three.
struct {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_num)(void);
  int (*num_threads)(void);
} openmp;

// Run work(first, end) over the neurons 0 to n - 1, a run of them in each thread.
template <class Work>
void share(int64_t n, int threads, const Work& work) {
  auto part = [&](int64_t i, int64_t of) {
    const int64_t lines = (n + kLine - 1) / kLine, end = lines * (i + 1) / of * kLine;
    work(lines * i / of * kLine, end < n ? end : n);
  };
  if (!openmp.parallel || threads == 1) return part(0, 1);
  auto in_thread = [](void* data) {
    (*static_cast<decltype(part)*>(data))(openmp.thread_num(), openmp.num_threads());
  };
  openmp.parallel(in_thread, &part, threads, 0);
}

}  // namespace

extern "C" void neurotally_use_openmp(decltype(openmp.parallel) parallel, int (*thread_num)(void),
                                      int (*num_threads)(void)) {
  openmp = {parallel, thread_num, num_threads};
}

extern "C" const char* neurotally_statistics() { return STATISTICS(SPELLED); }

extern "C" void neurotally_tally(const Job* job) {
  share(job->neurons, job->threads, [job](int64_t first, int64_t end) {
    if (job->dtype == 0) tally_neurons<Float32>(*job, first, end);
    if (job->dtype == 1) tally_neurons<BFloat16>(*job, first, end);
    if (job->dtype == 2) tally_neurons<Float16>(*job, first, end);
  });
}

// What compiled.py calls an Offer.
struct Offer {
  int64_t rows, tokens, neurons, num_triggers;
  const float* row_value;  // [B, F]
  const int32_t* row_position;
  const int32_t *document, *position;  // [B, T]
  const int64_t *run_first, *run_neuron;  // as in Job
  const float* threshold;  // [F]: no candidate may be below it
  float* value;  // [F, K], best first; 0, -1, -1 where unused
  int32_t *list_document, *list_position;
  int32_t threads;
};

namespace {

struct Candidate {
  float value;
  int32_t document, position;
  // The total order: larger value, then smaller document, then smaller position.
  bool before(const Candidate& other) const {
    if (value != other.value) return value > other.value;
    if (document != other.document) return document < other.document;
    return position < other.position;
  }
};

void insert(const Offer& offer, int64_t neuron, const Candidate& candidate) {
  float* value = offer.value + neuron * offer.num_triggers;
  int32_t* document = offer.list_document + neuron * offer.num_triggers;
  int32_t* position = offer.list_position + neuron * offer.num_triggers;
  auto entry = [&](int64_t k) { return Candidate{value[k], document[k], position[k]}; };
  // It takes the place of its own document's entry, if there is one, else of the last.
  int64_t k = 0;
  while (k < offer.num_triggers - 1 && document[k] != candidate.document) k++;
  if (value[k] > 0 && !candidate.before(entry(k))) return;
  for (; k > 0 && (value[k - 1] == 0 || candidate.before(entry(k - 1))); k--) {
    value[k] = value[k - 1], document[k] = document[k - 1], position[k] = position[k - 1];
  }
  value[k] = candidate.value, document[k] = candidate.document, position[k] = candidate.position;
}

}  // namespace

// What compiled.py calls an Insertion.
struct Insertion {
  int64_t neurons, num_triggers, units;
  // By unit. Its entries are by neuron, best first, of documents that neither the neuron's list nor another unit has.
  const uint32_t* const* count;  // [F]
  const float* const* entry_value;
  const int32_t *const *entry_document, *const *entry_position;
  float* value;  // [F, K], best first; 0 where unused
  int32_t *document, *position;
  int32_t threads;
};

namespace {

constexpr int64_t kCandidates = 32;  // that enter a list at a time
constexpr int64_t kTogether = 2;     // lists that are merged side by side
constexpr int64_t kAheadEntries = 64, kAheadLists = 4;  // so far ahead memory is asked for

// A value and a document as one number, larger where they come before: a positive float's bits are in the order of its
// value. 0 where an entry of a list is unused (0, -1).
inline uint64_t rank_of(float value, int32_t document) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(document);
}

// Where a unit's entries for the next neuron lie.
struct Cursor {
  const uint32_t* count;
  const float* value;
  const int32_t *document, *position;

  void skip(int64_t entries) { value += entries, document += entries, position += entries, count++; }
};

// A neuron's list, and candidates for it.
struct Merger {
  explicit Merger(int64_t K) : K(K), held(K), merged(K), merged_position(K) {}

  const int64_t K;
  float* value;
  int32_t *document, *position;
  int64_t n = 0, runs = 0;  // candidates, and of how many units; each unit's are in order
  uint64_t rank[kCandidates + 1] = {};
  int32_t rank_position[kCandidates + 1] = {};
  std::vector<uint64_t> held, merged;
  std::vector<int32_t> merged_position;

  uint64_t least() const { return rank_of(value[K - 1], document[K - 1]); }

  // Puts the candidates in order, N at most: each goes where so many come before it.
  template <int N>
  void order() {
    uint64_t from[N], before[N] = {};
    int32_t from_position[N];
    std::fill(rank + n, rank + N, 0);
    std::copy_n(rank, N, from), std::copy_n(rank_position, N, from_position);
    for (int64_t j = 0; j < n; j++) {
      for (int64_t i = 0; i < N; i++) before[i] += rank[j] > from[i];
    }
    for (int64_t i = 0; i < n; i++) rank[before[i]] = from[i], rank_position[before[i]] = from_position[i];
  }

  // Before the list and the candidates are merged.
  void begin() {
    for (int64_t k = 0; k < K; k++) held[k] = rank_of(value[k], document[k]);
    if (runs > 1) n <= 8 ? order<8>() : n <= 16 ? order<16>() : order<kCandidates>();
    rank[n] = 0;  // behind the last
  }

  void end() {
    for (int64_t k = 0; k < K; k++) {
      const uint32_t bits = merged[k] >> 32;
      std::memcpy(value + k, &bits, sizeof bits);
      document[k] = ~static_cast<uint32_t>(merged[k]), position[k] = merged_position[k];
    }
    n = 0;
  }
};

// Merges the lists and the candidates of N neurons, both best first: side by side, since each step waits for the one
// before it. No branch hangs on a comparison, half of which would be guessed wrong.
template <int N>
void merge(Merger* mergers) {
  int64_t i[N] = {}, j[N] = {};
  for (int64_t t = 0; t < N; t++) mergers[t].begin();
  for (int64_t k = 0; k < mergers->K; k++) {
    for (int64_t t = 0; t < N; t++) {
      Merger& of = mergers[t];
      const uint64_t of_list = of.held[i[t]], of_units = of.rank[j[t]];
      const int32_t list_position = of.position[i[t]], units_position = of.rank_position[j[t]];
      const int64_t stays = of_list >= of_units, mask = -stays;
      of.merged[k] = of_units ^ ((of_list ^ of_units) & mask);
      of.merged_position[k] = units_position ^ ((list_position ^ units_position) & static_cast<int32_t>(mask));
      i[t] += stays, j[t] += 1 - stays;
    }
  }
  for (int64_t t = 0; t < N; t++) mergers[t].end();
}

// Enters units' candidates into the lists of one neuron after the other.
class Entering {
 public:
  Entering(const Insertion& into, int64_t first) : into(into), mergers(kTogether, Merger(into.num_triggers)) {
    for (int64_t unit = 0; unit < into.units; unit++) {
      const uint32_t* count = into.count[unit];
      const int64_t at = std::accumulate(count, count + first, int64_t{0});
      units.push_back({count + first, into.entry_value[unit] + at, into.entry_document[unit] + at,
                       into.entry_position[unit] + at});
    }
  }

  // All units' entries for the neurons from `first` to `end`, which are the next ones.
  void enter(int64_t first, int64_t end) {
    int64_t f = first;
    for (; f + kTogether <= end; f += kTogether) {
      bool all = true;
      for (int64_t t = 0; t < kTogether; t++) all &= gather(f + t, mergers[t]);
      if (all) merge<kTogether>(mergers.data());
      else merge_those_with_candidates();
    }
    for (; f < end; f++) gather(f, mergers[0]), merge_those_with_candidates();
  }

 private:
  // The lists of the others are left as they are: late in a corpus most are.
  void merge_those_with_candidates() {
    for (Merger& merger : mergers) {
      if (merger.n) merge<1>(&merger);
    }
  }

  // Whether a neuron has candidates.
  bool gather(int64_t neuron, Merger& merger) {
    const int64_t K = into.num_triggers, at = neuron * K, ahead = at + kAheadLists * K;
    merger.value = into.value + at, merger.document = into.document + at, merger.position = into.position + at;
    for (int64_t line = ahead; line < ahead + K; line += 16) {
      __builtin_prefetch(into.value + line), __builtin_prefetch(into.document + line);
      __builtin_prefetch(into.position + line);
    }
    uint64_t least = merger.least();
    merger.runs = 0;
    for (Cursor& unit : units) {
      const int64_t entries = *unit.count;
      __builtin_prefetch(unit.count + kAheadEntries), __builtin_prefetch(unit.value + kAheadEntries);
      __builtin_prefetch(unit.document + kAheadEntries), __builtin_prefetch(unit.position + kAheadEntries);
      for (int64_t i = 0; i < entries; i++) {
        const uint64_t candidate = rank_of(unit.value[i], unit.document[i]);
        if (candidate <= least) break;  // nor do those after it come before the list's last
        merger.runs += i == 0;
        merger.rank[merger.n] = candidate, merger.rank_position[merger.n] = unit.position[i];
        if (++merger.n == kCandidates) {
          merge<1>(&merger);
          merger.runs = 1;  // this unit goes on
          least = merger.least();
        }
      }
      unit.skip(entries);
    }
    return merger.n > 0;
  }

  const Insertion& into;
  std::vector<Cursor> units;
  std::vector<Merger> mergers;
};

}  // namespace

extern "C" void neurotally_insert(const Insertion* into) {
  share(into->neurons, into->threads, [into](int64_t first, int64_t end) {
    Entering(*into, first).enter(first, end);
  });
}

extern "C" void neurotally_offer(const Offer* offer) {
  share(offer->neurons, offer->threads, [offer](int64_t first, int64_t end) {
    for (int64_t b = 0; b < offer->rows; b++) {
      const float* value = offer->row_value + b * offer->neurons;
      const int64_t first_cell = offer->run_first ? offer->run_first[b] : b * offer->tokens;
      for (int64_t f = first; f < end; f++) {
        const int64_t neuron = (offer->run_neuron ? offer->run_neuron[b] : 0) + f;
        const float last = offer->value[(neuron + 1) * offer->num_triggers - 1];
        // An equal value may come from an earlier document.
        if (!(value[f] > 0 && value[f] >= offer->threshold[neuron] && value[f] >= last)) continue;
        const int64_t cell = first_cell + offer->row_position[b * offer->neurons + f];
        insert(*offer, neuron, {value[f], offer->document[cell], offer->position[cell]});
      }
    }
  });
}
