/* y = x · wᵀ for one to four rows x and a row-major matrix w (out, in), float32 or bfloat16, summed in float32; what a
   model does to x before and to y after on the way.

   Such a product takes as long as reading w. A thread reads its part of w as several streams, each going through
   consecutive rows, and asks for what comes next ahead of time: memory then gives what it gives to anything, where
   one stream at a time gets two thirds of it (experiments/LOG.md, 2026-11-27). */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Numbers in a vector register, and how many sums of so many there are registers for. */
#if defined(__AVX512F__)
enum { LANES = 16, SUMS = 16 };
#elif defined(__AVX__)
enum { LANES = 8, SUMS = 8 };
#else
enum { LANES = 4, SUMS = 16 };
#endif
enum { MOST_ROWS = 4, MOST_STREAMS = 8 };
enum { LINE = 64, AHEAD = 1024 }; /* bytes of a cache line, and how far ahead one is asked for */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef struct { floats first, second; } pair;

/* 2 · LANES numbers in an order that depends on nothing but their type. */
INLINE pair load(int bfloat16, const char *from) {
    pair numbers;
    if (bfloat16) { /* each is the upper half of a float32 */
        words halves;
        memcpy(&halves, from, sizeof halves);
        numbers.first = (floats)(halves << 16);
        numbers.second = (floats)(halves & 0xffff0000);
    } else {
        memcpy(&numbers.first, from, sizeof numbers.first);
        memcpy(&numbers.second, from + sizeof numbers.first, sizeof numbers.second);
    }
    return numbers;
}

INLINE void store(int bfloat16, char *to, float number) {
    if (bfloat16) { /* to nearest, ties to even */
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        uint16_t half = number == number ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
        memcpy(to, &half, sizeof half);
    } else {
        memcpy(to, &number, sizeof number);
    }
}

INLINE float fetch(int bfloat16, const char *from) {
    float number = 0;
    memcpy((char *)&number + 2 * bfloat16, from, 4 - 2 * bfloat16);
    return number;
}

typedef struct {
    const char *w, *x, *add; /* add: (rows, out) or NULL */
    char *y;
    long out, in;
    float scale[MOST_ROWS]; /* of each row of x */
    int squared_relu;
} product;

INLINE void finish(int bfloat16, const product *p, int row, long column, float sum) {
    const long place = (row * p->out + column) * (bfloat16 ? 2 : 4);
    store(bfloat16, p->y + place, sum * p->scale[row]);
    if (!p->squared_relu && !p->add) return;
    float number = fetch(bfloat16, p->y + place); /* rounded as if each were an operation of its own */
    if (p->squared_relu) {
        store(bfloat16, p->y + place, number > 0 ? number * number : number == number ? 0 : number);
        number = fetch(bfloat16, p->y + place);
    }
    if (p->add) store(bfloat16, p->y + place, number + fetch(bfloat16, p->add + place));
}

/* 1 / the root of the mean square of a row of x, as torch.nn.functional.rms_norm has it. */
INLINE float reciprocal_rms(int bfloat16, const char *x, long in) {
    floats sums = {0};
    for (long k = 0; k < in; k += 2 * LANES) {
        const pair numbers = load(bfloat16, x + k * (bfloat16 ? 2 : 4));
        sums += numbers.first * numbers.first + numbers.second * numbers.second;
    }
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return 1 / sqrtf(sum / in + 1.1920929e-7f);
}

/* Columns `begin` to `end` of y. The first two arguments are constants to the compiler. */
INLINE void columns(int bfloat16, int rows, const product *p, long begin, long end) {
    const char *w = p->w, *x = p->x;
    const long in = p->in;
    const int streams = SUMS / rows < MOST_STREAMS ? SUMS / rows : MOST_STREAMS;
    const long size = bfloat16 ? 2 : 4, steps = (end - begin + streams - 1) / streams;
    for (long step = 0; step < steps; step++) {
        long column[MOST_STREAMS];
        floats sums[SUMS] = {0};
        for (int s = 0; s < streams; s++) {
            const long next = begin + (end - begin) * s / streams + step;
            column[s] = next < end ? next : end - 1; /* streams differ by one column: some is done twice */
        }
        for (long k = 0; k < in; k += 2 * LANES) {
            pair inputs[MOST_ROWS];
            for (int row = 0; row < rows; row++) inputs[row] = load(bfloat16, x + (row * in + k) * size);
            for (int s = 0; s < streams; s++) {
                const char *from = w + (column[s] * in + k) * size;
                for (int line = 0; line < 2 * LANES * size; line += LINE) __builtin_prefetch(from + line + AHEAD);
                const pair weights = load(bfloat16, from);
                for (int row = 0; row < rows; row++) {
                    sums[s * rows + row] += weights.first * inputs[row].first;
                    sums[s * rows + row] += weights.second * inputs[row].second;
                }
            }
        }
        for (int s = 0; s < streams; s++)
            for (int row = 0; row < rows; row++) {
                float sum = 0;
                for (int lane = 0; lane < LANES; lane++) sum += sums[s * rows + row][lane];
                finish(bfloat16, p, row, column[s], sum);
            }
    }
}

/* `rows` is 1 to 4, `in` a multiple of 32. y = f(n(x) · wᵀ) + add: n is nothing or an RMS norm, f nothing or a squared
   ReLU, add NULL or (rows, out). */
void gemv(int bfloat16, int rows, const char *w, const char *x, const char *add, char *y, long out, long in, int normed,
          int squared_relu, int threads) {
    product p = {.w = w, .x = x, .add = add, .y = y, .out = out, .in = in, .squared_relu = squared_relu};
    for (int row = 0; row < rows; row++) {
        const char *from = x + row * in * (bfloat16 ? 2 : 4);
        p.scale[row] = !normed ? 1 : bfloat16 ? reciprocal_rms(1, from, in) : reciprocal_rms(0, from, in);
    }
#pragma omp parallel for num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        const long begin = out * thread / threads, end = out * (thread + 1) / threads;
        switch (2 * rows + !!bfloat16) {
            case 2: columns(0, 1, &p, begin, end); break;
            case 3: columns(1, 1, &p, begin, end); break;
            case 4: columns(0, 2, &p, begin, end); break;
            case 5: columns(1, 2, &p, begin, end); break;
            case 6: columns(0, 3, &p, begin, end); break;
            case 7: columns(1, 3, &p, begin, end); break;
            case 8: columns(0, 4, &p, begin, end); break;
            case 9: columns(1, 4, &p, begin, end); break;
        }
    }
}
