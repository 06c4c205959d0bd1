// Products with matrices that are held as a bit for every entry and the values of those whose bit is set.
//
// Rows of bits are padded to whole words of 64, the lowest bit first; values lie row after row, fp32 or bf16, and behind
// the last there are 64 bytes that may be read. Sums are fp32. bitmap_rows.inc has the loops; it is compiled for each set
// of instructions, and the machine is asked which it has, so that one binary serves all x86-64.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int MOST = 8;  // vectors that one reading of the matrix serves

struct Matrix {
  const uint64_t* bits;
  const void* values;
  const int64_t* starts;  // of each row's values
  int64_t words;          // of a row
};

// For each byte of a mask, which of the next values each of eight entries is; AVX2 has no instruction for it.
struct Tables {
  alignas(64) uint8_t pairs[256][16];  // for a shuffle of bytes: 0x80 gives 0
  alignas(64) int8_t places[256][8];   // negative: none
  Tables() {
    for (int mask = 0; mask < 256; ++mask)
      for (int entry = 0, next = 0; entry < 8; ++entry) {
        const bool active = mask >> entry & 1;
        pairs[mask][2 * entry] = active ? 2 * next : 0x80;
        pairs[mask][2 * entry + 1] = active ? 2 * next + 1 : 0x80;
        places[mask][entry] = active ? next : -128;
        next += active;
      }
  }
};
const Tables tables;

}  // namespace

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,fma,popcnt")
namespace avx512 {

using Vector = __m512;

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline Vector add_product(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
inline float total(Vector sum) { return _mm512_reduce_add_ps(sum); }

struct Bf16 {
  using Value = uint16_t;
  static constexpr int STEP = 32, PARTS = 2;  // entries 0, 2, … and 1, 3, …: a shift makes fp32 of either
  static int take(uint64_t bits, const Value* from, Vector* parts) {
    const __mmask32 mask = static_cast<__mmask32>(bits);
    const __m512i found = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(from));
    parts[0] = _mm512_castsi512_ps(_mm512_slli_epi32(found, 16));
    parts[1] = _mm512_castsi512_ps(_mm512_and_si512(found, _mm512_set1_epi32(0xffff0000)));
    return _mm_popcnt_u32(mask);
  }
  static void arrange(const float* from, float* to) {
    for (int entry = 0; entry < 16; ++entry) to[entry] = from[2 * entry], to[16 + entry] = from[2 * entry + 1];
  }
  static void put(const Vector* parts, float* to) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(parts[0], low, parts[1]));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(parts[0], high, parts[1]));
  }
};

struct Fp32 {
  using Value = float;
  static constexpr int STEP = 16, PARTS = 1;
  static int take(uint64_t bits, const Value* from, Vector* parts) {
    const __mmask16 mask = static_cast<__mmask16>(bits);
    parts[0] = _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(from));
    return _mm_popcnt_u32(mask);
  }
  static void arrange(const float* from, float* to) { std::memcpy(to, from, STEP * sizeof(float)); }
  static void put(const Vector* parts, float* to) { _mm512_storeu_ps(to, parts[0]); }
};

#include "bitmap_rows.inc"

}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
namespace avx2 {

using Vector = __m256;

inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
inline Vector add_product(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
inline float total(Vector sum) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

struct Bf16 {
  using Value = uint16_t;
  static constexpr int STEP = 8, PARTS = 1;
  static int take(uint64_t bits, const Value* from, Vector* parts) {
    const uint8_t mask = static_cast<uint8_t>(bits);
    const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(tables.pairs[mask]));
    const __m128i found = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), order);
    parts[0] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(found), 16));
    return _mm_popcnt_u32(mask);
  }
  static void arrange(const float* from, float* to) { std::memcpy(to, from, STEP * sizeof(float)); }
  static void put(const Vector* parts, float* to) { _mm256_storeu_ps(to, parts[0]); }
};

struct Fp32 {
  using Value = float;
  static constexpr int STEP = 8, PARTS = 1;
  static int take(uint64_t bits, const Value* from, Vector* parts) {
    const uint8_t mask = static_cast<uint8_t>(bits);
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(tables.places[mask]));
    const __m256i order = _mm256_cvtepi8_epi32(bytes);
    const __m256 found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), order);
    parts[0] = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(order, 31)), found);
    return _mm_popcnt_u32(mask);
  }
  static void arrange(const float* from, float* to) { std::memcpy(to, from, STEP * sizeof(float)); }
  static void put(const Vector* parts, float* to) { _mm256_storeu_ps(to, parts[0]); }
};

#include "bitmap_rows.inc"

}  // namespace avx2
#pragma GCC pop_options

namespace {

// [the widest instructions?][bf16?]
constexpr decltype(&avx2::multiply<avx2::Fp32>) MULTIPLY[2][2] = {
    {avx2::multiply<avx2::Fp32>, avx2::multiply<avx2::Bf16>},
    {avx512::multiply<avx512::Fp32>, avx512::multiply<avx512::Bf16>}};
constexpr decltype(&avx2::arrange<avx2::Fp32>) ARRANGE[2][2] = {
    {avx2::arrange<avx2::Fp32>, avx2::arrange<avx2::Bf16>}, {avx512::arrange<avx512::Fp32>, avx512::arrange<avx512::Bf16>}};
constexpr decltype(&avx2::expand<avx2::Fp32>) EXPAND[2][2] = {
    {avx2::expand<avx2::Fp32>, avx2::expand<avx2::Bf16>}, {avx512::expand<avx512::Fp32>, avx512::expand<avx512::Bf16>}};

}  // namespace

extern "C" {

// 2: AVX-512 with VBMI2; 1: AVX2; 0: neither.
int bitmap_level() {
  const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2");
  return narrow ? 1 + wide : 0;
}

// y [trails, count, rows] = x [trails, count, columns] times the transposed matrices [trails, rows, columns].
// Rows of x are consecutive floats; x_trail = 0 means that the trails share x.
void bitmap_multiply(int level, int is_bf16, const uint64_t* bits, const void* values, const int64_t* starts,
                     int64_t trails, int64_t rows, int64_t columns, int64_t words, const float* x, int64_t x_trail,
                     int64_t count, float* y, int num_threads) {
  const int64_t width = 64 * words, copies = x_trail ? trails : 1;
  float* arranged = static_cast<float*>(std::aligned_alloc(64, copies * count * width * sizeof(float)));
  for (int64_t copy = 0; copy < copies; ++copy)
    for (int64_t row = 0; row < count; ++row)
      ARRANGE[level - 1][is_bf16](x + copy * x_trail + row * columns, columns, width,
                                  arranged + (copy * count + row) * width);
  const int64_t part = std::max<int64_t>(16, ((rows / (4 * num_threads)) + 3) / 4 * 4);
  const int64_t parts = (rows + part - 1) / part;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int64_t task = 0; task < trails * parts; ++task) {
    const int64_t trail = task / parts, first = task % parts * part, last = std::min(rows, first + part);
    const Matrix matrix{bits + trail * rows * words, values, starts + trail * rows, words};
    const float* vectors = arranged + (x_trail ? trail * count * width : 0);
    for (int64_t done = 0; done < count; done += MOST)
      MULTIPLY[level - 1][is_bf16](matrix, first, last, vectors + done * width, std::min<int64_t>(MOST, count - done),
                                   y + (trail * count + done) * rows, rows);
  }
  std::free(arranged);
}

// The dense rows from `first` on, fp32 [rows, 64 * words].
void bitmap_expand(int level, int is_bf16, const uint64_t* bits, const void* values, const int64_t* starts, int64_t first,
                   int64_t rows, int64_t words, float* dense, int num_threads) {
  const Matrix matrix{bits, values, starts, words};
#pragma omp parallel for num_threads(num_threads)
  for (int64_t row = 0; row < rows; ++row)
    EXPAND[level - 1][is_bf16](matrix, first + row, dense + row * 64 * words);
}
}
